"""Every error has a code and the field that is wrong besides its message."""

import pickle

import pytest

from atent_ext.core import errors, registry

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.AtentError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_carries_code_field_and_words_also_through_a_pickle(kind):
    error = pickle.loads(pickle.dumps(kind("eps is -1; it must be >= 0", code="bad-value", field="eps")))
    assert (str(error), error.code, error.field) == ("eps is -1; it must be >= 0", "bad-value", "eps")
    assert kind("words").field is None


def test_kinds_have_codes_of_their_own():
    own = {kind.__name__: kind("").code for kind in KINDS if kind not in (errors.AtentError, errors.BadInput)}
    assert own == {
        "MissingExtra": "missing-extra",
        "TermsCollected": "terms-collected",
        "NotWritten": "not-written",
        "Interrupted": "interrupted",
        "NonFiniteLoss": "non-finite-loss",
    }


def test_an_unknown_name_is_an_error_of_its_kind():
    error = registry.nearest("model", "resnet-19", ["resnet-18", "vgg-11"])
    assert (error.code, error.field) == ("unknown-name", "model")
    assert registry.nearest("AutoAttack version", "plsu", ["plus"], field="version").field == "version"
