"""The typed recipe of a run: its fields, and how recipes are read from files.

Imports neither torch nor a detector, so that `detdistill --help` stays quick.
"""

from detdistill.recipe.fields import DataConfig, ModelConfig, Recipe, SplitPaths, TeacherConfig, TrainConfig
from detdistill.recipe.files import Overrides, load, merge, nested, packaged, parse, read_yaml, yaml_problem
