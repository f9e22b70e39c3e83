"""From YAML to checked constructor calls."""

from ssl_zoo.config.binding import bind, convert
from ssl_zoo.config.constraints import (
    AtLeastTwo,
    Bounds,
    DueEpochs,
    DueSteps,
    HalfOpenUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    OfMachine,
    PositiveFloat,
    PositiveInt,
    RampEpochs,
    RampSteps,
    Range,
    Scheduled,
    UnitInterval,
)
from ssl_zoo.config.construct import constrained
from ssl_zoo.config.errors import ConfigError, closest, join, not_among
from ssl_zoo.config.part import PYTHON, Part, refuse_recorded, signature
from ssl_zoo.config.registry import (
    BACKBONES,
    DATASETS,
    EVALUATIONS,
    HEADS,
    LOSSES,
    MEMORY,
    METHODS,
    OBSERVERS,
    OPTIMIZERS,
    SCHEDULES,
    TRANSFORMS,
    Registry,
)
from ssl_zoo.config.yaml import Config, differences, dump, find, load, loads, override, recipes
