"""Settings of a run: a frozen dataclass for each section, one field per flag; docstrings of fields are the help.

A field that is ``None`` has a default that depends on the model or the data; its docstring names it, and
`wellread.recipes.registry.resolve` fills it in.
"""

from wellread.config.canary import CanaryConfig as CanaryConfig
from wellread.config.cluster import ClusterConfig as ClusterConfig
from wellread.config.cluster import Strategy as Strategy
from wellread.config.cluster import Switch as Switch
from wellread.config.data import DataConfig as DataConfig
from wellread.config.data import LongStories as LongStories
from wellread.config.data import Packing as Packing
from wellread.config.data import TextConfig as TextConfig
from wellread.config.flat import from_dict as from_dict
from wellread.config.flat import from_file as from_file
from wellread.config.flat import to_dict as to_dict
from wellread.config.folder import CONFIGS as CONFIGS
from wellread.config.model import Dtype as Dtype
from wellread.config.model import Init as Init
from wellread.config.model import LoraConfig as LoraConfig
from wellread.config.model import ModelConfig as ModelConfig
from wellread.config.run import PretrainConfig as PretrainConfig
from wellread.config.run import RunConfig as RunConfig
from wellread.config.run import kind_of as kind_of
from wellread.config.save import SaveConfig as SaveConfig
from wellread.config.schedule import OptimConfig as OptimConfig
from wellread.config.schedule import ScheduleConfig as ScheduleConfig
from wellread.config.watch import WatchConfig as WatchConfig
