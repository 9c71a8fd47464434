"""Published algorithms as values. Learning rates and batch sizes belong to the configs."""

from dataclasses import replace

from grpo_jax.algorithms.algorithm import Algorithm

# DeepSeekMath, 2402.03300: group 64, one update per rollout.
_GRPO = Algorithm(advantage="group_norm", kl="k3", beta=0.04, aggregation="sequence_mean")
_NO_KL = replace(_GRPO, beta=0.0)

PRESETS: dict[str, Algorithm] = {
    "grpo": _GRPO,
    # Process supervision, 4.1.3 of the same paper.
    "grpo_process": replace(_GRPO, advantage="process"),
    # DeepSeek-R1, 2501.12948: a clip of 10 has no lower side; 8,192 outputs in 16 minibatches.
    "grpo_r1": replace(
        _GRPO, clip_low=10.0, clip_high=10.0, beta=0.001, minibatches=16, reference_refresh=400
    ),
    # 2503.20783: neither the group's spread nor a completion's length divides anything.
    "dr_grpo": replace(_NO_KL, advantage="group_mean", aggregation="constant"),
    # 2503.14476: a cache of 4,096 of 20,480 tokens. The paper sets no limit of rounds; verl does.
    "dapo": replace(
        _NO_KL,
        clip_high=0.28,
        aggregation="token_mean",
        dynamic_sampling_rounds=10,
        overlong_cache=0.2,
    ),
    # 2507.18071
    "gspo": replace(_NO_KL, ratio="sequence", clip_low=3e-4, clip_high=4e-4, minibatches=4),
    # 2506.13585: only the upper clip; the paper leaves its value open, TRL bounds the weight by 5.
    "cispo": replace(
        _NO_KL, surrogate="cispo", clip_low=1.0, clip_high=4.0, aggregation="token_mean"
    ),
    # 2402.14740; beta as in TRL.
    "rloo": Algorithm(
        advantage="leave_one_out",
        surrogate="reinforce",
        kl="k1",
        kl_in="reward",
        beta=0.05,
        aggregation="sequence_sum",
    ),
    # 2501.03262; beta as in OpenRLHF, the authors' code.
    "reinforce_pp": Algorithm(
        advantage="global_whiten", kl="k1", kl_in="reward", beta=0.01, aggregation="token_mean"
    ),
    "reinforce_pp_baseline": Algorithm(
        advantage="global_whiten_baseline", kl="k2", beta=0.01, aggregation="token_mean"
    ),
    # 2507.20673: the clip is of the log-ratio.
    "gmpo": replace(_NO_KL, surrogate="gmpo", clip_low=0.4, clip_high=0.4),
    # 2511.20347
    "sapo": replace(_NO_KL, surrogate="sapo", sapo_tau_pos=1.0, sapo_tau_neg=1.05),
    # 1707.06347, with a critic; beta as in TRL.
    "ppo": Algorithm(
        advantage="gae",
        gamma=1.0,
        lam=0.95,
        kl="k1",
        kl_in="reward",
        beta=0.05,
        aggregation="token_mean",
        minibatches=4,
        critic="network",
        value_clip=0.2,
    ),
    # Expert iteration: DeepSeekMath's online rejection sampling fine-tuning, 2402.03300, A.1.2.
    "online_rft": Algorithm(
        advantage="accepted", surrogate="reinforce", aggregation="sequence_mean"
    ),
    # 2508.08221
    "lite_ppo": replace(_NO_KL, advantage="batch_norm", aggregation="token_mean"),
    # 2505.23585: exactly on-policy, no KL, no clip.
    "opo": replace(
        _NO_KL, advantage="length_weighted", surrogate="reinforce", aggregation="token_mean"
    ),
    # 2601.05242: each reward normalised by itself; group_mean leaves their sum as it is.
    "gdpo": replace(_NO_KL, reward_combination="normalize_each", advantage="group_mean"),
}
