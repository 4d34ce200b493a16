"""Lightning callbacks for any Trainer that fits an `LCFModule`. Installed as ``lcf_lightning.callbacks``."""

from lcf_lightning.callbacks.accuracy import CommunicationAccuracy
from lcf_lightning.callbacks.export import AdapterExport

__all__ = ["AdapterExport", "CommunicationAccuracy"]
