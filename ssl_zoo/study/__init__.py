"""Many runs, compared."""

from ssl_zoo.study.launch import run_study
