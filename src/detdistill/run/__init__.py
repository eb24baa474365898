"""The verbs of the Python API. Each is the command of the same name, without the parsing."""

from detdistill.run.comparison import compare
from detdistill.run.demonstration import demo
from detdistill.run.evaluating import evaluate
from detdistill.run.exports import export
from detdistill.run.inspecting import inspect_data
from detdistill.run.inspecting_pair import inspect_pair
from detdistill.run.models import build, load, save
from detdistill.run.pairing import pair
from detdistill.run.predicting import predict
from detdistill.run.reporting import report
from detdistill.run.training import Outcome, distill, train
