"""The attention head against Eq. 5-6, and BatchNorm that stays at the teacher's statistics."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pu_kd_pipeline.learning.features import FeatureExtractor
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier, PUHead, make_head, pu_features


def _slow_score(head, row):
    """Eq. 5 and 6 for one sample: the attention over the descriptor, then a linear score."""
    descriptor = row[:8]
    outputs = row[8:]
    w1 = head.squeeze.weight
    w2 = head.excite.weight
    bottleneck = torch.relu(w1 @ descriptor)
    attention = torch.sigmoid(w2 @ bottleneck)
    # The teacher's outputs get no attention.
    inputs = torch.cat([attention * descriptor, outputs])
    return head.score.weight[0] @ inputs + head.score.bias[0]


def test_the_head_computes_equations_5_and_6():
    head = PUHead(descriptor_size=8, n_outputs=2, reduction=4)
    assert head.squeeze.weight.shape == (2, 8)
    assert head.excite.weight.shape == (8, 2)
    assert head.squeeze.bias is None
    assert head.excite.bias is None

    features = torch.randn(5, 10)
    scores = head(features)
    for score, row in zip(scores, features, strict=True):
        expected = _slow_score(head, row)
        assert_close(score, expected)


def test_standardization_removes_scale_and_shift_from_the_score():
    features = torch.randn(50, 6)
    head = PUHead(6, 0, 2)
    head.set_standardization(features)
    scores = head(features)

    moved = 3 * features + 5
    head.set_standardization(moved)
    moved_scores = head(moved)

    assert_close(moved_scores, scores, rtol=1e-4, atol=1e-5)


def test_constant_channels_give_finite_scores():
    head = PUHead(3, 0, 1)
    # Their standard deviation is 0, by which nothing may be divided.
    constant = torch.zeros(10, 3)
    head.set_standardization(constant)
    scores = head(constant)

    assert scores.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "descriptor_size", "width"),
    [("descriptor", 6, 6), ("last_layer", 2, 2), ("teacher_outputs", 6, 4), ("both", 6, 10)],
)
def test_features_and_head_agree_on_the_width(kind, descriptor_size, width):
    descriptor = torch.randn(3, 6).half()
    logits = torch.randn(3, 10)

    features = pu_features(descriptor, logits, kind, last_tap_size=2)
    head = make_head(descriptor_size, kind, 2)
    scores = head(features)

    assert features.shape == (3, width)
    assert scores.shape == (3,)


def test_the_features_of_the_last_layer_end_the_descriptor():
    descriptor = torch.randn(3, 6).half()
    logits = torch.randn(3, 10)

    features = pu_features(descriptor, logits, "last_layer", last_tap_size=2)
    last_two = descriptor[:, 4:]

    assert_close(features, last_two)


def test_without_attention_the_score_is_linear():
    head = make_head(6, "descriptor", None)
    features = torch.randn(4, 6)
    scores = head(features)
    expected = features @ head.score.weight[0] + head.score.bias[0]

    assert_close(scores, expected)


def test_a_head_without_inputs_is_refused():
    with pytest.raises(ValueError, match="a descriptor, teacher outputs, or both"):
        PUHead(0, 0, 4)


def _full_classifier():
    network = build_network("digits_cnn", 10, 1)
    extractor = FeatureExtractor(network, None, (1, 8, 8))
    head = PUHead(extractor.descriptor_size, 0, 16)
    return FullPUClassifier(extractor, head)


def test_batch_statistics_do_not_change_while_the_backbone_trains():
    classifier = _full_classifier().train()
    backbone = classifier.extractor
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    images = torch.randn(16, 1, 8, 8)
    scores = classifier(images)
    scores.sum().backward()
    first_parameter = next(backbone.parameters())

    # The loop below must have something to check.
    assert before
    for name, value in backbone.named_buffers():
        assert torch.equal(value, before[name])
    assert first_parameter.grad is not None


def test_a_channel_that_is_constant_in_the_pool_keeps_its_scale():
    head = PUHead(2, 0, 1)
    # Only the first channel is constant.
    features = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    head.set_standardization(features)

    assert head.std.tolist() == [1.0, 1.0]


def test_a_channel_that_is_constant_but_for_rounding_keeps_its_scale():
    head = PUHead(2, 0, 1)
    # The mean of 0.1 in half precision is not exactly that value.
    features = torch.full((50, 2), 0.1, dtype=torch.float16)
    head.set_standardization(features)

    assert head.std.tolist() == [1.0, 1.0]


def _is_rounded_to_bf16(tensor):
    return torch.equal(tensor, tensor.bfloat16().float())


@torch.no_grad()
def test_scores_are_full_float32_where_the_backbone_runs_in_bf16():
    classifier = _full_classifier().eval()
    images = torch.rand(64, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        descriptor, _ = classifier.extractor(images)
        scores = classifier(images)
    expected = classifier.head(descriptor)

    assert torch.equal(scores, expected)
    assert not _is_rounded_to_bf16(scores)
    assert not _is_rounded_to_bf16(descriptor)
