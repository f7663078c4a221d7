"""Composition: tasks, model, rates and meta-gradient put together, trained, checkpointed and judged."""

from metastep._allocator import keep_freed_memory
from metastep.train.build import build_learner
from metastep.train.certificate import Certificate, certify_run
from metastep.train.checkpoint import Checkpoints
from metastep.train.choose import choose_meta_lr, choose_rates, measure_rates
from metastep.train.config import PRESETS, ProblemConfig, TaskConfig, TrainConfig
from metastep.train.crew import Crew, CrewConfig, join
from metastep.train.devices import make_mesh
from metastep.train.edges import measure_edges, predict_limits
from metastep.train.evaluate import Evaluation, evaluate, losses_at_rates, predict
from metastep.train.folder import RunFolder
from metastep.train.journal import Observer
from metastep.train.learner import Learner, side_by_side
from metastep.train.loop import Outcome, Schedule, run_loop
from metastep.train.memory import Fit, Footprint, fit, footprint
from metastep.train.new_task import TaskPredictions
from metastep.train.problem import TaskSet, build_inner_loop, build_model, load_tasks
from metastep.train.rate_map import map_of_problem, rate_map, train_plane
from metastep.train.run import TrainResult, resume, train
from metastep.train.state import TrainState, initial_state
from metastep.train.stationarity import GradientNorm, gradient_norm
from metastep.train.step import advance, meta_step
from metastep.train.sweep import SweepResult, sweep
from metastep.train.sweep_processes import sweep_over_processes
from metastep.train.trained import TrainedRun, adapt_and_predict, evaluate_run, load_run

__all__ = [
    "PRESETS",
    "Certificate",
    "Checkpoints",
    "Crew",
    "CrewConfig",
    "Evaluation",
    "Fit",
    "Footprint",
    "GradientNorm",
    "Learner",
    "Observer",
    "Outcome",
    "ProblemConfig",
    "RunFolder",
    "Schedule",
    "SweepResult",
    "TaskConfig",
    "TaskPredictions",
    "TaskSet",
    "TrainConfig",
    "TrainResult",
    "TrainState",
    "TrainedRun",
    "adapt_and_predict",
    "advance",
    "build_inner_loop",
    "build_learner",
    "build_model",
    "certify_run",
    "choose_meta_lr",
    "choose_rates",
    "evaluate",
    "evaluate_run",
    "fit",
    "footprint",
    "gradient_norm",
    "initial_state",
    "join",
    "keep_freed_memory",
    "load_run",
    "load_tasks",
    "losses_at_rates",
    "make_mesh",
    "map_of_problem",
    "measure_edges",
    "measure_rates",
    "meta_step",
    "predict",
    "predict_limits",
    "rate_map",
    "resume",
    "run_loop",
    "side_by_side",
    "sweep",
    "sweep_over_processes",
    "train",
    "train_plane",
]
