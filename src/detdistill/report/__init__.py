"""The report: one HTML page about a teacher, a plain and a distilled student. It knows no run folder."""

from detdistill.report.content import (
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
)
from detdistill.report.page import page
from detdistill.report.pictures import SIDE, picture
