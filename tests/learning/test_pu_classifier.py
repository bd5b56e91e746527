"""The attention head against Eq. 5-6 written out, and BatchNorm that stays at the teacher's statistics."""

from __future__ import annotations

import pytest
import torch

from pu_kd_pipeline.learning.features import FeatureExtractor
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier, PUHead, make_head, pu_features


def test_head_is_equation_5_and_6_written_out():
    head = PUHead(descriptor_size=8, n_outputs=2, reduction=4)
    features = torch.randn(5, 10)
    w1, w2 = head.squeeze.weight, head.excite.weight
    assert w1.shape == (2, 8)
    assert w2.shape == (8, 2)
    assert head.squeeze.bias is None
    assert head.excite.bias is None
    for score, row in zip(head(features), features, strict=True):
        o, t = row[:8], row[8:]
        attention = torch.sigmoid(w2 @ torch.relu(w1 @ o))
        expected = head.score.weight[0] @ torch.cat([attention * o, t]) + head.score.bias[0]
        torch.testing.assert_close(score, expected)


def test_standardization_makes_the_score_blind_to_scale_and_shift():
    features = torch.randn(50, 6)
    torch.manual_seed(0)
    head = PUHead(6, 0, 2)
    head.standardize_by(features)
    scores = head(features)
    head.standardize_by(3 * features + 5)
    torch.testing.assert_close(head(3 * features + 5), scores, rtol=1e-4, atol=1e-5)


def test_constant_channels_give_finite_scores():
    head = PUHead(3, 0, 1)
    head.standardize_by(torch.zeros(10, 3))
    assert head(torch.zeros(2, 3)).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "width"), [("descriptor", 6), ("last_layer", 2), ("teacher_outputs", 4), ("both", 10)]
)
def test_features_and_head_agree_on_the_width(kind, width):
    descriptor = torch.randn(3, 6).half()
    features = pu_features(descriptor, torch.randn(3, 10), kind, last_tap_size=2)
    assert features.shape == (3, width)
    assert make_head(2 if kind == "last_layer" else 6, kind, 2)(features).shape == (3,)
    if kind == "last_layer":
        torch.testing.assert_close(features, descriptor[:, 4:])


def test_without_attention_the_score_is_linear():
    head, features = make_head(6, "descriptor", None), torch.randn(4, 6)
    torch.testing.assert_close(head(features), features @ head.score.weight[0] + head.score.bias[0])


def test_a_head_without_inputs_is_refused():
    with pytest.raises(ValueError, match="a descriptor, teacher outputs, or both"):
        PUHead(0, 0, 4)


def test_batch_statistics_do_not_move_while_the_backbone_trains():
    network = build_network("digits_cnn", 10, 1)
    extractor = FeatureExtractor(network, None, (1, 8, 8))
    classifier = FullPUClassifier(extractor, PUHead(extractor.descriptor_size, 0, 16)).train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    classifier(torch.randn(16, 1, 8, 8)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert next(network.parameters()).grad is not None


def test_a_channel_that_is_constant_in_the_pool_does_not_blow_up_the_positives():
    head = PUHead(2, 0, 1)
    head.standardize_by(torch.tensor([[0.0, 1.0], [0.0, 3.0]]))
    assert head.std.tolist() == [1.0, 1.0]
    head.standardize_by(torch.full((50, 2), 0.1, dtype=torch.float16))  # constant but for rounding
    assert head.std.tolist() == [1.0, 1.0]


def test_scores_are_full_float32_where_the_backbone_runs_in_bf16():
    extractor = FeatureExtractor(build_network("digits_cnn", 10, 1), None, (1, 8, 8))
    classifier = FullPUClassifier(extractor, PUHead(extractor.descriptor_size, 0, 16)).eval()
    images = torch.rand(64, 1, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        descriptor, _ = extractor(images)
        scores = classifier(images)
    with torch.no_grad():
        assert torch.equal(scores, classifier.head(descriptor))
    assert not torch.equal(scores, scores.bfloat16().float())
    assert not torch.equal(descriptor, descriptor.bfloat16().float())
