"""The report: one HTML page about a teacher, a plain and a distilled student. It knows no run folder."""

from detdistill.reporting.content import (
    Confusion,
    Example,
    Export,
    Gain,
    Log,
    Member,
    Origin,
    Picture,
    Quality,
    Story,
    best_of,
)
from detdistill.reporting.page import page
from detdistill.reporting.pictures import SIDE, picture
