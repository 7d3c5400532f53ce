"""Lines of code and nodes, as messages name them."""

import os
import sys
import types


def place_of(error: BaseException) -> str:
    """The innermost line of the user's code in `error`'s traceback; empty if there is none."""
    where = ""
    trace_ = error.__traceback__
    while trace_ is not None:
        code = trace_.tb_frame.f_code
        if is_users(code.co_filename):
            where = f" at {code.co_filename}:{trace_.tb_lineno} in {code.co_name}"
        trace_ = trace_.tb_next
    return where


def asking_line() -> str:
    """The innermost line of the user's code that runs."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return "a place that can't be told"
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"


def is_users(filename: str) -> bool:
    """Whether a file is neither torch's nor ours."""
    if filename.startswith("<"):  # made by code, but for what is typed into Python itself
        return filename.startswith(("<stdin", "<console", "<ipython-input", "<python-input"))
    return "/torch/" not in filename and not filename.startswith(_OURS)


_OURS = os.path.dirname(__file__) + os.sep
