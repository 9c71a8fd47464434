"""GRPO in one file: python -m experiments.minimal [--steps=60 --seed=0].

Algorithm 1 of DeepSeekMath (2402.03300) on one-digit addition, from random parameters, with the
package's functions and nothing hidden: no checkpoints, no evaluation, one process. The mean reward
goes from 0.05 to some 0.4 in 60 steps, three quarters of a minute on 2 cores (seed 0, once).
`experiments.train` takes the same steps; there everything else is a choice of a config.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from grpo_jax.config import defaults
from grpo_jax.config.command_line import run_main
from grpo_jax.engines import Sampling, completion_keys, make_engine
from grpo_jax.learning.optimizer import apply_gradient, make_optimizer
from grpo_jax.learning.state import init_state
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.logps import completion_logps
from grpo_jax.rewards.numbers import last_number
from grpo_jax.rollout.play import encode_batch, texts
from grpo_jax.sharding import make_mesh, using
from grpo_jax.tasks import make_task
from grpo_jax.tasks.loader import batches
from grpo_jax.tokenizers import char_tokenizer

STEPS = flags.DEFINE_integer("steps", 60, "how many", lower_bound=1)
SEED = flags.DEFINE_integer(
    "seed", 0, "of the model, the problems and the noise", lower_bound=0, upper_bound=2**32 - 1
)

P, G, S, T = 32, 16, 16, 3  # prompts, group, prompt and completion length
UPDATES, CLIP, BETA, TEMPERATURE = 2, 0.2, 0.001, 1.0  # of each batch; epsilon; weight of the KL
RATE, DIGITS = 1e-3, 1  # of learning, and of the numbers that are added


def train(steps, seed, model=None):
    """The mean reward of each step, and the last parameters.

    model  a ModelConfig; None = that of `config.defaults()`, some 0.2 M parameters
    """
    task = make_task("addition", digits=DIGITS, heldout_size=8)
    tokenizer = char_tokenizer(task.symbols or ())
    model = Decoder(model or ModelConfig(vocab_size=tokenizer.vocab_size))
    config = defaults().optimizer
    config.learning_rate = RATE
    optimizer = make_optimizer(config, steps * UPDATES)
    engine = make_engine("lockstep", model)
    sampling = Sampling(max_tokens=T, stop=tokenizer.stop, temperature=TEMPERATURE)
    problems, history = batches(task.train, P, seed), []
    mesh, rng = make_mesh(), jax.random.key(seed)
    with using(mesh):
        state = init_state(model, optimizer, rng, mesh, reference=True)
        for number in range(1, steps + 1):
            # Sample G completions of each question from the policy, which is now the old one.
            questions = next(problems)
            prompts = encode_batch(tokenizer, questions, S, multiple=16)
            keys = completion_keys(rng, number, np.arange(P), G)
            rollouts = engine.generate(state.policy.full, prompts, keys, sampling)
            written = texts(tokenizer, np.asarray(rollouts.tokens), np.asarray(rollouts.mask))
            # Score them, and let each group be its own baseline.
            rewards = np.array([graded(*each) for each in zip(questions, written, strict=True)])
            history.append(rewards.mean())
            old = logps(model, state.policy.full, rollouts)
            ref = logps(model, state.reference, rollouts)
            batch = rollouts, jnp.asarray(advantages(rewards)), old, ref
            # Maximize the objective.
            for _ in range(UPDATES):
                state = update(model, optimizer, state, batch)
            print(f"step {number}/{steps}  reward {history[-1]:.3f}", flush=True)
    return history, state.policy.full


def graded(question, completions):
    """The rewards of a question's completions, [G]: 1 where their last number is the answer."""
    G = len(completions)
    answers = [question.columns["answer"]] * G
    return np.array(last_number([question.prompt] * G, completions, answer=answers))


def advantages(rewards):
    """(r - mean) / std over the group, f32[P, G, 1]; 0 for a group without spread."""
    centred = rewards - rewards.mean(-1, keepdims=True)
    std = rewards.std(-1, ddof=1, keepdims=True)
    return (centred / (std + 1e-6)).astype(np.float32)[..., None]


@jax.jit(static_argnums=0)
def logps(model, params, rollouts):
    """Log-probs f32[P, G, T] of completions; a group's prompt is forwarded once."""
    return completion_logps(model, params, rollouts.prompts, rollouts.tokens, TEMPERATURE)[0]


@jax.jit(static_argnums=0)
def update(model, optimizer, state, batch):
    """One step on the objective, equation 3: clipped surrogate, less the KL to the reference."""
    rollouts, A, old, ref = batch
    mask = rollouts.mask
    weights = mask / (mask.sum(-1, keepdims=True) * P * G)  # 1 / |o_i|, and the mean over all

    def loss(trained):
        logp = logps(model, state.policy.replace(trained=trained).full, rollouts)
        ratio = jnp.exp(jnp.where(mask, logp - old, 0.0))
        surrogate = jnp.minimum(ratio * A, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * A)
        gap = jnp.where(mask, ref - logp, 0.0)
        kl = jnp.exp(gap) - gap - 1  # unbiased, and never negative
        return -(weights * (surrogate - BETA * kl)).sum()

    gradient = jax.grad(loss)(state.policy.trained)
    moved = apply_gradient(optimizer, state.policy.trained, state.opt_state, gradient)
    policy = state.policy.replace(trained=moved.params)
    return state.replace(step=state.step + 1, policy=policy, opt_state=moved.opt_state)


def main():
    train(STEPS.value, SEED.value)


if __name__ == "__main__":
    run_main(main, with_config=False, with_workdir=False)
