"""Admission: bounded, and one at a time for the same question."""

from vmi_agent.admission import Admission


def test_admission_at_its_limit() -> None:
    """As many as the limit get in, whether started or waiting; one more is turned away until one leaves."""
    admission, started = Admission(2), []

    assert admission.enter("a", lambda: started.append(1))
    assert admission.enter("a", lambda: started.append(2))
    assert not admission.enter("b", lambda: started.append(3))
    admission.leave("a")
    assert admission.enter("b", lambda: started.append(4))
    assert started == [1, 2, 4]


def test_admission_lets_the_same_question_through_one_by_one() -> None:
    """A repetition starts when the one before it has left, in order; other questions do not wait."""
    admission, started = Admission(10), []
    for number in (1, 2, 3):
        admission.enter("same", lambda number=number: started.append(number))  # type: ignore[misc]
    admission.enter("other", lambda: started.append(9))
    assert started == [1, 9]

    admission.leave("same")
    assert started == [1, 9, 2]
    admission.leave("same")
    assert started == [1, 9, 2, 3]
    admission.leave("same")
    admission.leave("other")
    assert admission.admitted == 0


def test_admission_forgets_a_question_that_is_answered() -> None:
    """A question asked again after its answer starts at once."""
    admission, started = Admission(1), []
    for _ in range(3):
        assert admission.enter("same", lambda: started.append(1))
        admission.leave("same")

    assert started == [1, 1, 1]
