"""RLHF in one file: supervised fine-tuning, comparisons, reward model, PPO. Read it from top to bottom.

    python rlhf.py WORLD.json ROWS.jsonl [name=value ...]         (needs torch, transformers and numpy, and no other package)

The laboratory is compared with it row by row; so it is frozen. Each step says why it is as it is, and most of what is said is
what implementations get wrong. x prompt, y response; prompts are padded on the left, responses on the right.
"""

# fmt: off
import copy, json, math, sys, zlib  # noqa: E401, I001
from collections import Counter, namedtuple
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

# 0. Settings: the default world's. SFT, comparisons and reward model have seed 0; `seed` is that of PPO.
CFG, ROWS = SimpleNamespace(
    hidden=64, layers=2, heads=4, inner=128, length=28,
    sft_epochs=4, sft_batch=64, sft_rate=3e-3, sft_warmup=20,
    pairs=2000, held_out_pairs=200, flip=0.1, rm_epochs=2, rm_batch=32, rm_rate=5e-4,
    seed=0, steps=100, batch=64, inner_epochs=2, minibatches=2, policy_rate=3e-4, critic_rate=1e-3,
    beta=0.2, lam=0.95, clip=0.2, value_clip=0.2, value_weight=0.1, no_eos_score=-3.0, every=5, prompts=64, unit_samples=512,
), []
def log(stage, step, split, **columns):
    ROWS.append({"stage": stage, "step": step, "split": split, **{name: float(x) for name, x in columns.items()}})

# 1. Random numbers: one named stream for each purpose, so that two runs with one seed see the same prompts and the same noise
#    whatever else differs, and any step can be redone without the ones before. Prompts come in endless shuffled passes.
def stream(seed, name, *counters):
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(name.encode()), *counters]))
def shuffled(items, count, position, seed, name):
    orders = [stream(seed, name, e).permutation(len(items)) for e in range((position + count - 1) // len(items) + 1)]
    return [items[orders[p // len(items)][p % len(items)]] for p in range(position, position + count)]

# 2. Text to tensors. A mask comes from lengths, never from comparing with the pad token, which a model may say as well. The EOS
#    is part of the response: the policy has to learn to stop, and is paid and charged for it. One word is one token here.
Batch = namedtuple("Batch", "prompts responses prompt_ids prompt_mask ids mask ended sampled_logprobs", defaults=[None])
def rows(batch, index):   # some sequences of a batch, without the columns that are padding for all of them
    b = Batch(*(x[index] if torch.is_tensor(x) else x and [x[i] for i in index] for x in batch))
    start, stop = b.prompt_mask.shape[1] - int(b.prompt_mask.sum(1).max()), int(b.mask.sum(1).max())
    return b._replace(prompt_ids=b.prompt_ids[:, start:], prompt_mask=b.prompt_mask[:, start:],
                      ids=b.ids[:, :stop], mask=b.mask[:, :stop])

class Words:
    def __init__(self, world):
        self.word, self.special = world["vocabulary"], set(world["special"].values())
        self.id = {word: i for i, word in enumerate(self.word)}
        self.pad, self.bos, self.eos, self.unknown = (self.id[world["special"][name]] for name in ("pad", "bos", "eos", "unk"))
    def ids(self, text):
        return [self.id.get(word, self.unknown) for word in text.split()]
    def text(self, ids):
        return " ".join(self.word[i] for i in ids if self.word[i] not in self.special)
    def padded(self, lines, left):
        n, width = torch.tensor([[len(line)] for line in lines]), max(map(len, lines))
        ids = [[self.pad] * (width - len(line)) * left + line + [self.pad] * (width - len(line)) * (not left) for line in lines]
        place = torch.arange(width)
        return torch.tensor(ids), place >= width - n if left else place < n
    def encode(self, prompts, responses, ended):   # prompt and response apart, so that the seam between them never moves
        lines = [self.ids(y) + [self.eos] * end for y, end in zip(responses, ended, strict=True)]
        sides = self.padded([self.ids(x) for x in prompts], left=True) + self.padded(lines, left=False)
        return Batch(list(prompts), list(responses), *sides, torch.tensor(ended))

# 3. What a model says of given tokens. Dropout is off throughout: with it new and old policy would differ before any update.
#    Positions count from the first real token: with plain 0, 1, 2, … the padding on the left would shift every sequence.
def positions(mask):
    return (mask.long().cumsum(1) - 1).clamp(min=0)
def hidden(backbone, b):
    ids, mask = torch.cat([b.prompt_ids, b.ids], 1), torch.cat([b.prompt_mask, b.mask], 1)
    return backbone(ids, mask.long(), positions(mask), use_cache=False).last_hidden_state

def logprobs(model, b):
    """log π(y_t | x, y_<t), 0 in masked places, and the logits; those for token t stand one place *before* it."""
    logits = model.lm_head(hidden(model.model, b)[:, -(b.ids.shape[1] + 1):].contiguous())[:, :-1]
    chosen = logits.gather(-1, b.ids[..., None]).squeeze(-1) - logits.logsumexp(-1)
    return chosen.masked_fill(~b.mask, 0.0), logits
def masked_mean(x, mask):   # filled, not multiplied: NaN · 0 is NaN, and masked places may hold anything
    return x.masked_fill(~mask, 0.0).sum() / mask.sum()

# 4. Sampling, from the whole distribution at temperature 1. With top-p, or another temperature than in `logprobs`, the policy
#    gradient would be that of a law nobody sampled from. One uniform number per token, by inverse transform.
@torch.no_grad()
def sample(model, words, prompts, rng, length):
    prompt_ids, prompt_mask = words.padded([words.ids(x) for x in prompts], left=True)
    ids, seen, place, cache = prompt_ids, prompt_mask.long(), positions(prompt_mask), None
    u, alive, said = torch.from_numpy(rng.random((len(prompts), length))), torch.ones(len(prompts), dtype=torch.bool), []
    for t in range(length):
        out = model.model(input_ids=ids, attention_mask=seen, position_ids=place, past_key_values=cache, use_cache=True)
        law, cache = model.lm_head(out.last_hidden_state[:, -1:].contiguous())[:, -1].log_softmax(-1), out.past_key_values
        total = law.double().exp().cumsum(-1)
        token = torch.searchsorted(total, u[:, t:t + 1] * total[:, -1:], right=True).clamp(max=total.shape[1] - 1)
        said.append((torch.where(alive, token[:, 0], words.pad), alive, torch.where(alive, law.gather(1, token)[:, 0], 0.0)))
        alive = alive & (token[:, 0] != words.eos)
        if not alive.any():
            break
        ids, place, seen = said[-1][0][:, None], place[:, -1:] + 1, torch.cat([seen, seen.new_ones(len(prompts), 1)], 1)
    y, mask, logp = (torch.stack(column, 1) for column in zip(*said, strict=True))
    texts = [words.text(line[there].tolist()) for line, there in zip(y, mask, strict=True)]
    return Batch(list(prompts), texts, prompt_ids, prompt_mask, y, mask, ~alive, logp)

# 5. The gold reward: what is really wanted; it labels comparisons and is measured, but never trained on. Its penalties are
#    convex: next to nothing for what people write, large for what an optimiser finds. That is what makes over-optimisation.
def gold(world, batch):
    scores = []
    for prompt, response, ended in zip(batch.prompts, batch.responses, batch.ended.tolist(), strict=True):
        said, end = response.split(), [world["special"]["eos"]] * ended
        liking, surplus = sum(world["valence"].get(w, 0.0) for w in said), sum(max(0, n - 3) for n in Counter(said).values())
        bad = sum(b not in world["follows"].get(a, ()) for a, b in pairwise([prompt.split()[-1], *said, *end]))
        scores.append(4 * liking / math.hypot(liking, 8) - min(10, 0.25 * bad**2 + 0.08 * surplus**2) - (not ended))
    return torch.tensor(scores, dtype=torch.float32)

# 6. Supervised training, one loop for SFT and reward model: AdamW on shuffled batches, the norm of the gradient clipped at 1.
def fit(stage, module, n, epochs, size, top_rate, factor, loss_of, validate):
    optimizer = torch.optim.AdamW(module.parameters(), lr=top_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True)
    per_epoch = math.ceil(n / size)
    for step in range(epochs * per_epoch):
        epoch, i = divmod(step, per_epoch)
        optimizer.param_groups[0]["lr"] = top_rate * factor(step, epochs * per_epoch)
        optimizer.zero_grad()
        loss = loss_of(stream(0, "examples", epoch).permutation(n)[i * size:(i + 1) * size])
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        log(stage, step, "train", loss=loss.item(), grad_norm=norm)
        if i + 1 == per_epoch:
            with torch.no_grad():
                log(stage, step + 1, "validation", **validate())

# 7. SFT: the likelihood of the response, its first token and its EOS included, prompt tokens not; averaged over all tokens of
#    the batch. A mean of means over sequences would weigh the tokens of short responses more.
def sft(world, words, model):
    train, held_out = world["demonstrations"]["train"], world["demonstrations"]["validation"][:256]
    def encoded(demonstrations):
        return words.encode(*zip(*demonstrations, strict=True), [True] * len(demonstrations))
    def loss_of(index):
        b = encoded([train[i] for i in index])
        return -logprobs(model, b)[0].sum() / int(b.mask.sum())
    def validate():
        parts = [encoded(held_out[i:i + CFG.sft_batch]) for i in range(0, len(held_out), CFG.sft_batch)]
        return {"loss": -sum(logprobs(model, b)[0].sum() for b in parts) / sum(b.mask.sum() for b in parts)}
    def warmup_then_cosine(step, total):
        done = (step - CFG.sft_warmup) / max(1, total - CFG.sft_warmup)
        return step / CFG.sft_warmup if done < 0 else 0.5 * (1 + math.cos(math.pi * done))
    fit("sft", model, len(train), CFG.sft_epochs, CFG.sft_batch, CFG.sft_rate, warmup_then_cosine, loss_of, validate)

# 8. Comparisons: two responses of the SFT model to each prompt. Gold says which is better, and one time in ten it is misquoted.
#    Ties are dropped: they say nothing of the order, and a loss would push two equal responses apart.
def comparisons(world, words, model, split, n):
    prompts, held_out, found = shuffled(world["prompts"][split], n, 0, 0, f"comparisons.{split}"), int(split != "train"), []
    for first in range(0, n, 128):
        twice = [x for x in prompts[first:first + 128] for _ in range(2)]
        b = sample(model, words, twice, stream(0, "comparisons", held_out, first), CFG.length)
        noise, scores = stream(0, "label_noise", held_out, first), gold(world, b).tolist()
        for i in range(0, len(twice), 2):
            ratings = scores[i:i + 2][::-1 if noise.random() < CFG.flip else 1]
            if ratings[0] != ratings[1]:
                found.append((twice[i], b.responses[i:i + 2], ratings, b.ended[i:i + 2].tolist()))
    return found

# 9. The reward model: a scalar head on the SFT model, summed over the response. Comparisons fix only differences of scores, so
#    zero and scale are free; they are set such that SFT samples have mean 0 and standard deviation 1, or β would mean nothing.
class Scalar(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        d, seed = backbone.config.hidden_size, int(stream(0, "head").integers(2**63))
        self.backbone, self.head, self.gain, self.bias = backbone, nn.Linear(d, 1), 1.0, 0.0
        noise = torch.randn(1, d, generator=torch.Generator().manual_seed(seed))   # 1/√(d+1) is its deviation, not its variance
        self.head.weight.data, self.head.bias.data = noise / math.sqrt(d + 1), torch.zeros(1)   # there is a bias, 0 at first
    def score(self, b):
        per_token = self.head(hidden(self.backbone, b)[:, b.prompt_ids.shape[1]:]).squeeze(-1)
        return self.gain * per_token.masked_fill(~b.mask, 0.0).sum(1) + self.bias
    def values(self, b):   # V before token t must not know token t: it is read one place earlier, as the logits are
        return self.gain * self.head(hidden(self.backbone, b)[:, b.prompt_ids.shape[1] - 1:-1]).squeeze(-1) + self.bias

def reward_model(world, words, model, train, held_out):
    scorer = Scalar(copy.deepcopy(model.model))
    def judged(pairs):
        flat = [(x, y, end) for x, responses, _, ended in pairs for y, end in zip(responses, ended, strict=True)]
        return scorer.score(words.encode(*zip(*flat, strict=True))).view(-1, 2), torch.tensor([pair[2] for pair in pairs])
    def losses(scores, ratings):   # −log σ(score of the better − score of the worse): Bradley and Terry's law of choices
        return -nn.functional.logsigmoid((ratings[:, 0] - ratings[:, 1]).sign() * (scores[:, 0] - scores[:, 1]))
    def loss_of(index):
        return losses(*judged([train[i] for i in index])).mean()
    def validate():
        parts = [judged(held_out[i:i + CFG.rm_batch]) for i in range(0, len(held_out), CFG.rm_batch)]
        scores, ratings = (torch.cat(column) for column in zip(*parts, strict=True))
        right = (scores[:, 0] - scores[:, 1]) * (ratings[:, 0] - ratings[:, 1]) > 0
        return {"loss": losses(scores, ratings).mean(), "accuracy": right.float().mean()}
    fit("reward_model", scorer, len(train), CFG.rm_epochs, CFG.rm_batch, CFG.rm_rate, lambda s, n: 1 - s / n, loss_of, validate)
    some = shuffled(world["prompts"]["train"], 256, 0, 0, "normalization.prompts")
    b = sample(model, words, some, stream(0, "normalization"), 28)
    with torch.no_grad():
        raw = torch.cat([scorer.score(rows(b, i)) for i in torch.arange(256).split(CFG.rm_batch)])
    scorer.gain, scorer.bias = 1 / raw.std().item(), -raw.mean().item() * (1 / raw.std().item())
    log("reward_model", CFG.rm_epochs, "normalization", gain=scorer.gain, bias=scorer.bias)
    return scorer

# 10. PPO, with four models: the policy; its frozen start, from which KL is measured; the reward model; and a critic, which
#     starts as a copy of the reward model and shares no weight with the policy.
def gae(rewards, values, mask):   # A_t = δ_t + λ A_{t+1}, δ_t = r_t + V_{t+1} − V_t; V is 0 after the end: nothing is left
    advantages, value, advantage = [], torch.zeros(len(mask)), torch.zeros(len(mask))
    for t in reversed(range(mask.shape[1])):
        here = rewards[:, t] + value - values[:, t] + CFG.lam * advantage
        value, advantage = torch.where(mask[:, t], values[:, t], value), torch.where(mask[:, t], here, advantage)
        advantages.append(torch.where(mask[:, t], here, 0.0))
    return torch.stack(advantages[::-1], 1)

def ppo(world, words, policy, scorer):
    reference, critic = copy.deepcopy(policy).requires_grad_(False), copy.deepcopy(scorer).requires_grad_()
    groups = [{"params": [*policy.parameters()], "lr": 0.0}, {"params": [*critic.parameters()], "lr": 0.0}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.999), eps=1e-5, fused=True)   # at PyTorch's 1e-8 first steps are larger
    train, held_out = world["prompts"]["train"], world["prompts"]["validation"][:CFG.prompts]
    some = shuffled(train, CFG.unit_samples, 0, 0, "normalization.prompts")
    unit = gold(world, sample(policy, words, some, stream(0, "normalization"), 28))   # gold is told in SD of SFT samples
    @torch.no_grad()
    def measured(b):   # log-probs of policy and reference, and the entropy of the policy's law at each place
        (new, logits), (ref, _) = logprobs(policy, b), logprobs(reference, b)
        return new, ref, -(logits.log_softmax(-1).exp() * logits.log_softmax(-1)).sum(-1)
    def evaluate(step):   # always the same prompts and noise, so that a difference between two steps is no luck
        b = sample(policy, words, held_out, stream(CFG.seed, "evaluation"), CFG.length)
        new, ref, entropy = measured(b)
        log("rl", step, "validation", kl=(new - ref).sum(1).mean(), reward_proxy=scorer.score(b).mean(),
            reward_gold=((gold(world, b) - unit.mean()) / unit.std()).mean(), entropy=masked_mean(entropy, b.mask),
            response_length=b.mask.sum(1).float().mean(), eos_rate=b.ended.float().mean())
    evaluate(0)
    for step in range(CFG.steps):
        for group, rate in zip(optimizer.param_groups, (CFG.policy_rate, CFG.critic_rate), strict=True):
            group["lr"] = rate * (1 - step / CFG.steps)   # unannealed, a large β stays short of its optimum
        with torch.no_grad():
            # 10.1 Rollout: responses of the policy as it is now.
            prompts = shuffled(train, CFG.batch, step * CFG.batch, CFG.seed, "prompts")
            b = sample(policy, words, prompts, stream(CFG.seed, "rollout", step), CFG.length)
            # 10.2 Scores: a response that never ended gets a fixed bad one; the reward model learned little from such text.
            proxy = scorer.score(b)
            scores = torch.where(b.ended, proxy, CFG.no_eos_score)
            # 10.3 Token rewards: −β (log π − log ref) at every token, and the score *once*, at the last. The log-probs are
            #      computed as in the update, not taken from the sampler, so that the first ratio is 1 exactly.
            old, ref, entropy = measured(b)
            rewards = (-CFG.beta * (old - ref)).scatter_add(1, b.mask.sum(1, keepdim=True) - 1, scores[:, None])
            # 10.4 Advantages: whitened over the real tokens of the whole batch. Returns are made from those before whitening.
            values = critic.values(b).masked_fill(~b.mask, 0.0)
            advantages = gae(rewards, values, b.mask)
            returns = advantages + values
            centred = (advantages - masked_mean(advantages, b.mask)).masked_fill(~b.mask, 0.0)
            advantages = centred * (centred.square().sum() / b.mask.sum() + 1e-8).rsqrt()
        # 10.5 Update: passes over the batch in shuffled minibatches, each loss a mean over the minibatch's tokens.
        history = []
        for epoch in range(CFG.inner_epochs):
            order = torch.from_numpy(stream(CFG.seed, "minibatches", step, epoch).permutation(CFG.batch))
            for index in order.chunk(CFG.minibatches):
                part = rows(b, index)
                A, before, R, V_old = (x[index, :part.mask.shape[1]] for x in (advantages, old, returns, values))
                weight = part.mask.float() / part.mask.sum()
                log_ratio = logprobs(policy, part)[0] - before
                ratio = log_ratio.exp()
                # PPO maximises min(ρA, clip(ρ, 1 ± ε) A): where ρ has gone far enough the right way, there is no more to gain.
                surrogate = torch.maximum(-ratio * A, -ratio.clamp(1 - CFG.clip, 1 + CFG.clip) * A)
                V = critic.values(part).masked_fill(~part.mask, 0.0)
                V_near = V_old + (V - V_old).clamp(-CFG.value_clip, CFG.value_clip)
                error = 0.5 * torch.maximum((V - R).square(), (V_near - R).square())
                losses = (surrogate * weight).sum(), (error * weight).sum()
                optimizer.zero_grad()
                (losses[0] + CFG.value_weight * losses[1]).backward()
                norms = [nn.utils.clip_grad_norm_(module.parameters(), 1.0) for module in (policy, critic)]
                optimizer.step()
                more = (ratio, log_ratio.square() / 2, (surrogate > -ratio * A).float())
                history.append([x.item() for x in (*losses, *norms, *((x * weight).sum() for x in more))])
        # 10.6 Record, from the tensors that the loss used. The row describes the policy that sampled, before this update.
        names = ("loss_ppo_clip", "loss_value_clip", "grad_norm_policy", "grad_norm_critic", "ratio", "approx_kl",
                 "clip_fraction")
        means = dict(zip(names, np.mean(history, 0), strict=True))
        unexplained = (returns - values)[b.mask].var(correction=0) / returns[b.mask].var(correction=0)
        gap = masked_mean((b.sampled_logprobs - old).abs(), b.mask)
        log("rl", step, "train", kl=(old - ref).sum(1).mean(), reward_proxy=proxy.mean(), score=scores.mean(), sampler_gap=gap,
            entropy=masked_mean(entropy, b.mask), explained_variance=1 - unexplained, **means)
        if (step + 1) % CFG.every == 0 or step + 1 == CFG.steps:
            evaluate(step + 1)

def main(world):
    torch.set_num_threads(1)   # with more, sums are rounded in another order
    torch.manual_seed(0)
    words = Words(world)
    model = AutoModelForCausalLM.from_config(LlamaConfig(
        vocab_size=len(words.word), hidden_size=CFG.hidden, intermediate_size=CFG.inner, num_hidden_layers=CFG.layers,
        num_attention_heads=CFG.heads, num_key_value_heads=CFG.heads, head_dim=CFG.hidden // CFG.heads, pad_token_id=words.pad,
        max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=words.bos, eos_token_id=words.eos)).eval()
    sft(world, words, model)
    parts = [comparisons(world, words, model, *part) for part in (("train", CFG.pairs), ("validation", CFG.held_out_pairs))]
    ppo(world, words, model, reward_model(world, words, model, *parts).requires_grad_(False))
    return ROWS

if __name__ == "__main__":
    world_file, rows_file, *changes = sys.argv[1:]
    for name, text in (change.split("=") for change in changes):
        setattr(CFG, name, type(getattr(CFG, name))(text))
    Path(rows_file).write_text("".join(json.dumps(row) + "\n" for row in main(json.loads(Path(world_file).read_text()))))
