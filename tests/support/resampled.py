"""Bootstrap and shuffled labels of one score, as membership computes them."""

from eval.resampling import Resampling
from eval.separation import Floats, Ints


def cluster_bootstrap(
    members: Floats, nonmembers: Floats, documents: Ints, other_documents: Ints, *, draws: int, seed: int
) -> Floats:
    """AUC in each bootstrap draw of documents, float64[draws]."""
    return Resampling(documents, other_documents, draws, seed).rates(members, nonmembers, [])[None]


def permuted_auc(
    members: Floats, nonmembers: Floats, documents: Ints, other_documents: Ints, *, draws: int, seed: int
) -> Floats:
    """AUC after each shuffle of the labels among documents, float64[draws]."""
    return Resampling(documents, other_documents, draws, seed).shuffled(members, nonmembers)
