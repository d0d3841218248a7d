"""Responses of a stage's model to many prompts, batch by batch, from named streams."""

from rlhf_lab.lm.sampling import rollout
from rlhf_lab.streams import shuffled_batches


def sampled_prompts(cfg, ctx, model, encoder, split, n, samples):
    """(stream counters, prompts, rollout of `samples` responses to each) until n prompts have been asked.

    `cfg` has response_length, temperature, and batch_size in responses. The streams bear the name of its kind of stage.
    """
    prompts, per_batch = ctx.data.prompts(split), max(1, cfg.batch_size // samples)
    order = shuffled_batches(len(prompts), n, 0, ctx.seed, f"{cfg.name}.{split}") if n else []
    for first in range(0, n, per_batch):
        ctx.report(first, n, split)
        counters, asked = (int(split == "validation"), first), [prompts[i] for i in order[first : first + per_batch]]
        with ctx.accelerator.autocast():
            sampled = rollout(
                model,
                encoder,
                asked,
                ctx.rng(cfg.name, *counters),
                samples=samples,
                response_length=cfg.response_length,
                temperature=cfg.temperature,
            )
        yield counters, asked, sampled
