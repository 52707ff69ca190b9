"""Caption metrics against the package that papers report with (``golden/rest/caption_metrics``)."""

import numpy as np
import pytest

from model.tasks.caption_metrics import score_captions, tokenise


@pytest.mark.parametrize("name", ["ptb", "split"])
def test_figures_of_the_corpus_and_of_each_video(golden, name):
    arrays = golden("rest/caption_metrics")
    prefix = "tokenized_" if name == "ptb" else ""
    hypotheses = [str(text).split() for text in arrays[f"{prefix}hypotheses"]]
    references = [[str(text).split() for text in some] for some in arrays[f"{prefix}references"]]
    found = score_captions(hypotheses, references)
    np.testing.assert_allclose(found.bleu, arrays[f"{name}/bleu_f64"], atol=1e-9)
    np.testing.assert_allclose(np.array(found.bleu_each).T, arrays[f"{name}/bleu_each_f64"], atol=1e-9)
    assert found.rouge_l == pytest.approx(float(arrays[f"{name}/rouge_l_f64"]), abs=1e-9)
    np.testing.assert_allclose(found.rouge_l_each, arrays[f"{name}/rouge_l_each_f64"], atol=1e-9)
    assert found.cider == pytest.approx(float(arrays[f"{name}/cider_f64"]), abs=1e-9)
    np.testing.assert_allclose(found.cider_each, arrays[f"{name}/cider_each_f64"], atol=1e-9)


def test_own_tokeniser_cuts_these_captions_as_the_package_s(golden):
    arrays = golden("rest/caption_metrics")
    for plain, cut in (("hypotheses", "tokenized_hypotheses"), ("references", "tokenized_references")):
        for text, expected in zip(arrays[plain].ravel(), arrays[cut].ravel(), strict=True):
            assert tokenise(str(text)) == str(expected).split(), text


def test_perfect_and_empty_captions():
    perfect = score_captions(
        [["a", "red", "cat", "runs"], ["x", "y", "z", "w"]], [[["a", "red", "cat", "runs"]], [["x", "y", "z", "w"]]]
    )
    assert perfect.bleu[3] == pytest.approx(1, abs=1e-8)
    assert perfect.rouge_l == pytest.approx(1)
    assert perfect.cider == pytest.approx(10)
    assert score_captions([[]], [[["a"]]]).rouge_l == 0
    for hypotheses, references in (([], []), ([["a"]], [[]]), ([["a"]], [])):
        with pytest.raises(ValueError, match="at least one reference"):
            score_captions(hypotheses, references)
