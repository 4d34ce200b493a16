"""Model families: what differs from one architecture to another. Each is one class in one file of this folder."""

from lcf_lightning.discovery import import_modules
from lcf_lightning.models.families.family import Family, family_of, following

import_modules(__name__)

__all__ = ["Family", "family_of", "following"]
