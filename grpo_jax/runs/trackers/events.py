"""TensorBoard's event files: tensorboardX's writer and messages, without torch.

tensorboardX imports torch wherever it is installed, for what is not used here; that takes seconds,
more than all the rest of a program's start.
"""

import sys

_LOADED = "torch" in sys.modules
if not _LOADED:
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails
try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
finally:
    if not _LOADED:
        del sys.modules["torch"]

__all__ = ["Event", "EventsWriter", "SessionLog", "Summary"]
