"""Reading and writing the files of other dataset-distillation code."""

from ddfast.compat.convert import FORMATS, convert, recognise
from ddfast.compat.dd_ranking import read_dd_ranking, write_dd_ranking
from ddfast.compat.mtt import read_mtt, write_mtt
from ddfast.compat.png import read_png, write_png
from ddfast.compat.replay_buffers import read_replay_buffers, write_replay_buffers

__all__ = [
    "FORMATS",
    "convert",
    "read_dd_ranking",
    "read_mtt",
    "read_png",
    "read_replay_buffers",
    "recognise",
    "write_dd_ranking",
    "write_mtt",
    "write_png",
    "write_replay_buffers",
]
