"""Conformance of detectors and methods, those of this house and those of a user's own.

    from detdistill.testing import check_detector, check_pair

    check_detector(detector)                      # what every method may rely on
    check_pair(student, teacher, [method])        # ten steps on one small batch: finite, falling, nothing into the teacher

Both raise AssertionError with one line that says what does not hold, and leave their arguments as they were.
"""

from detdistill.testing.detector import check_detector
from detdistill.testing.pair import check_pair, learn
from detdistill.testing.scene import scene
