"""A whole config as a call, and what it builds."""

from ssl_zoo.experiment.baselines import (
    baselines_of,
    cost_of_step,
    images_of,
    measure_baselines,
    seconds_per_step,
)
from ssl_zoo.experiment.check import views_needed
from ssl_zoo.experiment.length import out_of_reach, run_length
from ssl_zoo.experiment.resume import changes, longer, open_folder
from ssl_zoo.experiment.sections import build_trainer, parse, resolve, seeded, whole_run
from ssl_zoo.experiment.sitting import train_into
from ssl_zoo.experiment.subject import Subject, load_subject, run_splits
