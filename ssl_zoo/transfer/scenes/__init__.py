"""Composed scenes: what they are made of, how, and how they are written."""

from ssl_zoo.transfer.scenes.composing import compose_scenes
from ssl_zoo.transfer.scenes.painting import Scene, paint
from ssl_zoo.transfer.scenes.parts import get_parts
