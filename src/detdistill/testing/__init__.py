"""Checks for detectors and methods, ours and those of a user.

    from detdistill.testing import check_detector, check_pair

    check_detector(detector)                # the detector keeps every promise of detdistill.types.Detector
    check_pair(student, teacher, [method])  # ten steps on one small batch: the method's terms are finite and fall

Both raise AssertionError with one line that says what is wrong, what was expected and which type describes it. Neither
changes its arguments.
"""

from detdistill.testing.detector import check_detector
from detdistill.testing.pair import check_pair, learn
from detdistill.testing.scene import scene
