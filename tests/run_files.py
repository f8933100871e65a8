"""Run files of seconds, for tests of the command line."""

SINUSOID = """\
name: tiny
source: {kind: sinusoids}
model: {kind: mlp, hidden: [8]}
learner: {kind: maml, inner_lr: 0.01, steps: 2}
train: {steps_per_round: 4, tasks_per_step: 2, mode: vmap}
target: mse <= 1000
budget: {rounds: 2}
evaluate: {num_val_tasks: 4, num_test_tasks: 6}
baselines: {names: [scratch, support_mean], steps: 2, num_val_tasks: 2, num_test_tasks: 4}
"""
SHORT = SINUSOID.replace("num_test_tasks: 6", "num_test_tasks: 6, shots: []").replace("scratch, ", "")
"""The same with one baseline, and without a figure for each number of shots."""
GLYPHS = """\
name: tiny-glyphs
source: {kind: glyphs, ways: 3, queries: 2}
model: {kind: conv4, channels: 4, downsample: stride}
learner: {kind: maml, inner_lr: 0.1}
pretrain: {steps: 3, batch: 8}
train: {steps_per_round: 2, tasks_per_step: 2}
target: accuracy >= 0.99
budget: {rounds: 2}
evaluate: {num_val_tasks: 3, num_test_tasks: 4}
baselines: {names: [scratch, fine_tune, pretrained_centroid, centroid], steps: 2, num_val_tasks: 2, num_test_tasks: 3}
"""
