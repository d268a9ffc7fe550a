"""What does each checkpoint write after the same prompts, and how well does it predict sealed samples? Run with

    wellread generations runs/NAME

Prompts are beginnings of sealed samples, so no checkpoint has read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from eval.evaluation import PerCheckpoint
from eval.generations import metrics, prompts, sealed, spans, texts
from eval.intervals import clustered_mean
from eval.items import Items
from eval.kept import binding_of, refuse_damaged
from eval.kept_table import KeptTable, settings_in
from eval.needs import Need, a_checkpoint, sealed_samples
from eval.section import Section
from wellread.errors import UserError

if TYPE_CHECKING:
    from eval.generations.prompts import Prompt
    from eval.progress import Reporter
    from eval.separation import Floats, Ints
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.decoder import Decoder
    from wellread.corpus.tokenizer import Tokenizer
    from wellread.results import Result
    from wellread.run import RunDirectory

TASK = "generations"
REFERENCE, SEALED = "reference", "sealed"
"""Groups of results, next to the methods `greedy` and `sampled`."""
FORMS = {"type_token_ratio": "logistic", "repeated": "logistic", "bleu": "logistic", "chrf": "logistic"}
"""Form of curve that may be fitted to a metric of texts: only to shares."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What is known of a checkpoint: its texts, and its losses on sealed samples."""

    texts: list[texts.Text]
    losses: sealed.SealedLosses


@dataclass(frozen=True, kw_only=True)
class Generations(PerCheckpoint[Outputs]):
    """Continuations of fixed prompts at each checkpoint, greedy and sampled, with metrics of each text.

    The prompts are the beginnings of sealed samples, drawn by `seed`. Texts are kept in
    `eval/generations/step-N.parquet`: another call writes only what is missing or belongs to other weights or settings.

    Raises
    ------
    UserError
        When a number is too small, or a prompt leaves no position for a new token.
    """

    prompts: int = 64
    """Number of prompts; fewer where fewer samples are sealed."""
    new_tokens: int = 200
    """Maximum number of tokens that continue a prompt."""
    max_samples: int = 256
    """Sealed samples for perplexity and bits per byte."""
    seed: int = 0
    """Seed for drawing prompts and samples, and for sampled texts."""

    name: ClassVar[str] = "generations"
    summary: ClassVar[str] = "continue fixed prompts at each checkpoint; metrics of each text, bits per byte"
    needs: ClassVar[tuple[Need, ...]] = (a_checkpoint, sealed_samples)

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag in ("prompts", "new_tokens", "max_samples"):
            least = 1 if flag == "new_tokens" else 2
            if getattr(self, flag) < least:
                raise UserError(f"--{flag} {getattr(self, flag)}: must be at least {least}")

    def size(self, step: int) -> int:
        """Texts and sealed samples at a step."""
        return len(texts.METHODS) * len(self.fixed_prompts) + self.sealed_ids.size

    def notes(self) -> Iterator[str]:
        """That fewer samples are sealed than asked for."""
        if len(self.fixed_prompts) < self.prompts:
            yield f"{len(self.fixed_prompts):,} prompts instead of {self.prompts:,}: no more samples are sealed"

    def score(self, checkpoint: Checkpoint, reporter: Reporter) -> Outputs:
        """Load the kept texts and losses of a checkpoint; write and keep the missing ones.

        Other processes that miss some of them wait.
        """
        start, outputs = reporter.scored, self._on_disk(checkpoint)
        if outputs is None or self.verify:
            refuse_damaged(self.run, checkpoint, again=self.verify)
        if outputs is None:
            with self._written(checkpoint).table.locked():
                outputs = self._on_disk(checkpoint) or self._filled(checkpoint, reporter)
        reporter.move_to(start + self.size(checkpoint.step))
        return outputs

    def _on_disk(self, checkpoint: Checkpoint) -> Outputs | None:
        """Texts and losses on disk; None if some are missing."""
        losses, rows = sealed.SealedLosses.read(self._kept_losses(checkpoint)), self._written(checkpoint).read()
        if losses is None or not texts.complete(rows, self.fixed_prompts):
            return None
        return Outputs(texts=rows, losses=losses)

    def _filled(self, checkpoint: Checkpoint, reporter: Reporter) -> Outputs:
        """Texts and losses after the missing ones were written to the locked files."""
        from eval.generations.writing import Work, fill

        work = Work(
            prompts=self.fixed_prompts,
            new_tokens=self.new_tokens,
            samples=self.samples,
            sealed_ids=self.sealed_ids,
            tokenizer=self.tokenizer,
            seed=self.seed,
            device=self.device,
        )
        written, file = self._written(checkpoint), self._kept_losses(checkpoint)
        before = sealed.SealedLosses.read(file)
        losses = fill(work, checkpoint, written, before, reporter)
        if before is None:
            losses.write(file)
        return Outputs(texts=written.read(), losses=losses)

    def measure(self, checkpoint: Checkpoint, scores: Outputs, reporter: Reporter) -> Iterator[Result]:
        """Mean of each metric, with an interval over documents."""
        yield from self._results(checkpoint, scores)

    def _results(self, checkpoint: Checkpoint, scores: Outputs) -> Iterator[Result]:
        for group, metric, values, documents in self._values(checkpoint, scores):
            row = clustered_mean(values, documents)
            yield self.result(checkpoint, task=TASK, metric=metric, group=group, n=values.size, **row)
            if (group, metric) == (SEALED, "loss"):
                yield self.result(
                    checkpoint, task=TASK, metric="perplexity", group=group, n=values.size, **_exponential(row)
                )
        for method in texts.METHODS:
            rows = [text for text in scores.texts if text.method == method]
            references = tuple(self._references[text.prompt_id] for text in rows)
            for metric, value in metrics.corpus_overlap(tuple(text.text for text in rows), references).items():
                yield self.result(checkpoint, task=TASK, metric=metric, group=method, n=len(rows), value=value)

    def headline(self, results: Sequence[Result]) -> str:
        """Bits per byte, and how much greedy texts repeat."""
        values = {(result.group, result.metric): result.value for result in results}
        return f"{values[SEALED, 'bits_per_byte']:.3f} bits per byte, {values['greedy', 'repeated']:.0%} repeated"

    @classmethod
    def overview(cls, results: Sequence[Result]) -> tuple[list[str], list[list[object]]]:
        """One row per checkpoint with the main results; the table on disk has all."""
        cells = {(result.step, result.group, result.metric): result.value for result in results}
        columns = {
            "bits/byte": (SEALED, "bits_per_byte"),
            "perplexity": (SEALED, "perplexity"),
            "BLEU": ("greedy", "corpus_bleu"),
            "chrF": ("greedy", "corpus_chrf"),
            "repeated": ("greedy", "repeated"),
            "words": ("greedy", "words"),
            "sampled": ("sampled", "words"),
        }
        rows: list[list[object]] = [
            [step, *(cells.get((step, *of)) for of in columns.values())] for step in sorted({r.step for r in results})
        ]
        return ["step", *columns], rows

    @classmethod
    def section(cls, run: RunDirectory, results: Sequence[Result]) -> Section | None:
        """Results of each checkpoint, and what it wrote after some of the prompts."""
        from eval.generations.section import section

        return section(run, results, *cls.overview(results)) if results else None

    @classmethod
    def items(cls, run: RunDirectory, checkpoint: Checkpoint) -> Iterator[Items]:
        """Values of each prompt and sealed sample at a checkpoint, from kept files; nothing if they are incomplete."""
        if state := _complete(run, checkpoint):
            yield from state[0]._items(checkpoint, state[1])

    @classmethod
    def of_kept(cls, run: RunDirectory) -> Iterator[Result]:
        """Results at every checkpoint whose kept files are complete, whichever call has written them."""
        from wellread.checkpoint import list_checkpoints

        for checkpoint in list_checkpoints(run.checkpoints):
            if state := _complete(run, checkpoint):
                yield from state[0]._results(checkpoint, state[1])

    def _items(self, checkpoint: Checkpoint, outputs: Outputs) -> Iterator[Items]:
        flags = {name: f"--{name} {getattr(self, name)}" for name in ("prompts", "new_tokens", "max_samples", "seed")}
        for group, metric, values, documents in self._values(checkpoint, outputs):
            if group != REFERENCE and metric != "loss":  # which is bits per byte, times a constant
                of_sealed, losses = group == SEALED, outputs.losses
                without = {"prompts", "new_tokens"} if of_sealed else {"max_samples"}
                yield Items(
                    metric=f"{group}/{metric}",
                    ids=losses.sample_id if of_sealed else self._ids,
                    documents=documents,
                    values=losses.paired_bits_per_byte if of_sealed else values,
                    sizes=losses.n_bytes.astype(np.float64) if of_sealed else None,
                    form="power" if of_sealed else FORMS.get(metric),
                    flags=" ".join(flag for name, flag in flags.items() if name not in without),
                )

    def _values(self, checkpoint: Checkpoint, outputs: Outputs) -> Iterator[tuple[str, str, Floats, Ints]]:
        """Group, metric, value of each item, and document of each item."""
        documents, tracer = self._documents[self._ids], spans.tracer_of(self.run, checkpoint)
        references = tuple(self._references[i] for i in self._ids)
        tokens = {REFERENCE: [prompt.reference[: self.new_tokens] for prompt in self.fixed_prompts]}
        for method in texts.METHODS:
            by_id = {text.prompt_id: text for text in outputs.texts if text.method == method}
            written = tuple(by_id[i].text for i in self._ids)
            tokens[method] = [by_id[i].tokens for i in self._ids]
            for metric, values in (metrics.measure(written) | metrics.overlap(written, references)).items():
                yield method, metric, values, documents
        for metric, values in metrics.measure(references).items():
            yield REFERENCE, metric, values, documents
        if tracer:
            for group, rows in tokens.items():
                plain = [texts.without_special(self.decoder, row) for row in rows]
                yield group, "longest_read", spans.longest_read(tracer, plain), documents
        of_sealed = self._documents[outputs.losses.sample_id]
        yield SEALED, "loss", outputs.losses.per_token, of_sealed
        yield SEALED, "bits_per_byte", outputs.losses.bits_per_byte, of_sealed

    def _written(self, checkpoint: Checkpoint) -> texts.Written:
        settings: dict[str, Any] = {name: getattr(self, name) for name in ("prompts", "new_tokens", "seed")}
        settings |= {"top_p": texts.TOP_P, "batch": prompts.BATCH, "digest": prompts.digest(self.fixed_prompts)}
        return texts.Written.at(self.run, checkpoint, settings)

    def _kept_losses(self, checkpoint: Checkpoint) -> KeptTable:
        settings = {"max_samples": self.max_samples, "seed": self.seed} | binding_of(checkpoint)
        return KeptTable(sealed.path(self.run, checkpoint), settings)

    @cached_property
    def _samples(self) -> tuple[Any, Ints]:
        return prompts.samples_of(self.run)

    @cached_property
    def _documents(self) -> Ints:
        return self._samples[1]

    @property
    def samples(self) -> Any:
        """The samples of the run, or segments of a packed corpus."""
        return self._samples[0]

    @cached_property
    def sealed_ids(self) -> Ints:
        """Sealed samples whose losses are computed."""
        return prompts.draw(self._samples[0], self.max_samples, self.seed)

    @cached_property
    def fixed_prompts(self) -> list[Prompt]:
        """The prompts, the same ones at every checkpoint."""
        samples, documents = self._samples
        return prompts.prompts_of(samples, documents, prompts.draw(samples, self.prompts, self.seed))

    @cached_property
    def _ids(self) -> Ints:
        return np.array([prompt.id for prompt in self.fixed_prompts])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus, with which texts are written; its package takes seconds to load."""
        from wellread.corpus.tokenizer import Tokenizer

        return Tokenizer.load(self.run.corpus / "tokenizer")

    @cached_property
    def decoder(self) -> Decoder:
        """The same tokenizer, with which texts are measured."""
        from wellread.corpus.decoder import Decoder

        return Decoder.load(self.run.corpus / "tokenizer")

    @cached_property
    def _references(self) -> dict[int, str]:
        """Prompt -> its true continuation, as long as a generated text may be, without special tokens."""
        return {
            prompt.id: texts.plain(self.decoder, prompt.reference[: self.new_tokens]) for prompt in self.fixed_prompts
        }


def _complete(run: RunDirectory, checkpoint: Checkpoint) -> tuple[Generations, Outputs] | None:
    """What is kept of a checkpoint, and the evaluation with its settings; None if a file is missing or incomplete."""
    of_texts, of_losses = (settings_in(of.path(run, checkpoint)) for of in (texts, sealed))
    if not of_texts or not of_losses:
        return None
    settings: dict[str, Any] = {name: of_texts.get(name) for name in ("prompts", "new_tokens", "seed")}
    settings["max_samples"] = of_losses.get("max_samples")
    if not all(type(number) is int for number in settings.values()):
        return None
    evaluation = _with(run, **settings)
    outputs = evaluation._on_disk(checkpoint)
    return None if outputs is None else (evaluation, outputs)


@lru_cache(maxsize=1)  # the checkpoints of a run have the same prompts
def _with(run: RunDirectory, **settings: Any) -> Generations:
    """The evaluation with the settings of kept files."""
    return Generations(run, **settings)


def _exponential(row: dict[str, float]) -> dict[str, float]:
    """Perplexity from loss: exp of value and interval; the standard error by the delta method."""
    with np.errstate(over="ignore"):  # a diverged run: infinite
        results = {name: float(np.exp(number)) for name, number in row.items() if name != "stderr"}
    return results | ({"stderr": row["stderr"] * results["value"]} if "stderr" in row else {})
