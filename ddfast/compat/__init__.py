"""Reading and writing the files of other dataset-distillation code."""

from ddfast.compat.arrays import read_arrays, write_arrays
from ddfast.compat.convert import FORMATS, convert, recognise
from ddfast.compat.dc import read_dc, write_dc
from ddfast.compat.dd_ranking import read_dd_ranking, write_dd_ranking
from ddfast.compat.idc import read_idc, write_idc
from ddfast.compat.mtt import read_mtt, write_mtt
from ddfast.compat.png import read_png, write_png
from ddfast.compat.replay_buffers import read_replay_buffers, write_replay_buffers
from ddfast.compat.state_dicts import read_state_dicts, write_state_dict
from ddfast.compat.tensors import Use

__all__ = [
    "FORMATS",
    "Use",
    "convert",
    "read_arrays",
    "read_dc",
    "read_dd_ranking",
    "read_idc",
    "read_mtt",
    "read_png",
    "read_replay_buffers",
    "read_state_dicts",
    "recognise",
    "write_arrays",
    "write_dc",
    "write_dd_ranking",
    "write_idc",
    "write_mtt",
    "write_png",
    "write_replay_buffers",
    "write_state_dict",
]
