"""The faults that `tests/faults.py` seeds: each a line of the package, what it becomes, and the tests that should notice."""

from __future__ import annotations

from dataclasses import dataclass

MESSAGE = "tests/message tests/test_message.py"  # folder now, file in 0.1.0
ADAPTER = "tests/adapter"
DATA = "tests/data"


@dataclass(frozen=True)
class Fault:
    """A change that no test may let pass.

    Attributes:
        group: What it is a fault of.
        old: Text that stands once in the package.
        new: What it becomes.
        tests: Files or folders of tests that should notice.
    """

    group: str
    old: str
    new: str
    tests: str


def faults(group: str, tests: str, *changes: tuple[str, str]) -> list[Fault]:
    return [Fault(group, old, new, tests) for old, new in changes]


FAULTS = [
    *faults(
        "message", MESSAGE,
        ("tag.update(body)", "tag.update(body[4:])"),
        ("if key is not None and not any(hmac.compare_digest(", "if key and not data[_TAG] and not any(hmac.compare_digest("),
        ("if len(data) > max_bytes:", "if len(data) > max_bytes + 1:"),
        ("if key is None and any(data[_TAG]):", "if any(data[_TAG]):"),
        ("data = _blocks(file, max_bytes + 1)", "data = file.read()"),
        ("len(key) < MIN_KEY_BYTES", "len(key) < MIN_KEY_BYTES - 1"),
        ("return type(value) is int and 1 <= value <= _MAX_COUNT", "return isinstance(value, int) and 1 <= value <= _MAX_COUNT"),
        ("in _several(key)):", "in _several(key)[:1]):"),
        ("if header.digest(payload) != digest:", "if header.digest(payload)[:1] != digest[:1]:"),
        ("found = hashlib.sha256(self.to_json())", "found = hashlib.sha256()"),
        ('(name in ("sharer", "receiver") and expected is None)', '(name in ("sharer", "receiver") and None in (found, expected))'),
        ('(name in ("sharer", "receiver") and expected is None)', '(name in ("sharer",) and expected is None)'),
        ("if said != expected:", "if expected is not None and said != expected:"),
        ("now = self._latest = max(self._latest, self._clock())", "now = self._latest = self._clock()"),
        ("while self._expiring and self._expiring[0][0] <= now:", "while len(self._seen) >= self._most:"),
        ("if not 0 < left <= LONGEST + 1:", "if not 0 < left:"),
        ("if not 0 < left <= LONGEST + 1:", "if not 0 <= left <= LONGEST + 1:"),
        ("            self._seen.add(binding.nonce)", "            self._seen.add(self.to or '')"),
        ("if len(self._seen) >= self._most:", "if len(self._seen) > self._most:"),
        ("if inbox is not None and key is None:", "if False:"),
        ("if isinstance(key, list | tuple) and not key:", "if False:"),
        ("fits = len(shape) == 5 and (*shape[:3], shape[4])", "fits = len(shape) == 5 and (*shape[:3], origin.head_dim)"),
        ("if not fits or shape[3] < 1 or", "if not fits or"),
        ("if length > min(_MAX_HEADER_BYTES, len(data) - _START):", "if length > len(data) - _START:"),
    ),
    *faults(
        "message", "tests/channel tests/test_channel.py tests/test_many_sharers.py tests/prefix tests/test_prefix.py",
        ("if len(several) > 1 and any(message.pooled for message in several):",
         "if len(several) > 2 and any(message.pooled for message in several):"),
        ("to_device(torch.arange(width) >= width - torch.tensor(counts)[:, None], device)",
         "to_device(torch.arange(width) < torch.tensor(counts)[:, None], device)"),
    ),
    *faults(
        "channel", "tests/channel/test_warnings.py",
        ("not sent_for <= {None, digest_of(history, asked)}", "not sent_for <= {None, *sent_for}"),
        ("if other and any(each.binding is not None for each in several):", "if False:"),
        ("json.dumps([*map(list, history), question.strip()])", "json.dumps(question.strip())"),
        ('if idle and "do_sample" not in options:', "if idle:"),
    ),
    *faults(
        "channel", "tests/channel/test_travels.py",
        ("if known and held_alike(made_for, model):", "if known:"),
        ("if model.device != found:", "if False:"),
    ),
    *faults(
        "data", "tests/data/sources/test_json_lines.py",
        ("line {place + 1}: {error}.", "line {place}: {error}."),
        ('own = _fields(row["text"]).get("id")', "own = None"),
    ),
    *faults("data", "tests/test_many_sharers.py", ("first += max(row.spans) + 1", "first += max(row.spans)")),
    *faults(
        "wire", MESSAGE,
        ("scale = tensor.abs().amax(-1, keepdim=True) / largest", "scale = tensor.abs().amax() / 127 + 0 * tensor[..., :1]"),
        (".round().clamp(-largest, largest)", ".clamp(-largest, largest)"),
        (".round().clamp(-largest, largest)", ".round()"),
        ('return 128 if name.endswith("_scale") else 1', "return 1"),
        ("(np.frombuffer(data, \"<u2\") & 0x7F80) == 0x7F80", "(np.frombuffer(data, \"<u2\") & 0x7FFF) == 0x7F80"),
        ('expected |= {f"{side}_scale": ("F32", (*shape[:-1], 1)) for side in _SIDES}', 'expected |= {}'),
        ("whole = torch.where(scale > 0, tensor / scale, 0)", "whole = (tensor / scale)"),
        ("f\"{side}_scale\": scale}", "f\"{side}_scale\": scale * 1.01}"),
        ("packed & 15, packed >> 4", "packed >> 4, packed & 15"),
    ),
    *faults(
        "adapter", ADAPTER,
        ("return (self.logits > 0).any(-1).nonzero().flatten()", "return (self.logits > 0).all(-1).nonzero().flatten()"),
        ("return (self.logits > 0).to(self.logits.dtype)", "return (self.logits >= 0).to(self.logits.dtype)"),
        ('"gumbel": lambda logits: -torch.log(-torch.log(_uniform(logits)))', '"gumbel": lambda logits: torch.log(-torch.log(_uniform(logits)))'),
        ("return max(0, layer + sharer - receiver)", "return max(0, layer + receiver - sharer)"),
        ("return round(layer * (sharer - 1) / max(1, receiver - 1))", "return round(layer * sharer / receiver)"),
        ("gated = KV(gates[:, 0] * delta.keys, gates[:, 1] * delta.values)", "gated = KV(gates[:, 0] * delta.keys, gates[:, 0] * delta.values)"),
        ("if batch != rows or n not in (1, tokens):", "if n not in (1, tokens):"),
        ("hidden = F.gelu(self.up(F.rms_norm(z, z.shape[-1:], eps=self.norm_eps) * self.norm))", "hidden = F.gelu(self.up(F.rms_norm(z, z.shape[-1:], eps=self.norm_eps)))"),
        ("by_key, by_value = weights.chunk(2, dim=2)", "by_value, by_key = weights.chunk(2, dim=2)"),
        ("return scores.unsqueeze(-2).masked_fill(~member[:, None]", "return scores.unsqueeze(-2).masked_fill(member[:, None]"),
        ("return torch.einsum(\"lhd,lbhnd->lbhn\", query, keys) * query.shape[-1] ** -0.5", "return torch.einsum(\"lhd,lbhnd->lbhn\", query, keys)"),
        ("if missing or extra:", "if missing:"),
        ("if len(dtypes) != 1 or dtypes.isdisjoint(_DTYPES):", "if dtypes.isdisjoint(_DTYPES):"),
        ("if len(dtypes) != 1 or dtypes.isdisjoint(_DTYPES):", "if len(dtypes) != 1:"),
        ("if digest is not None and tensors_digest(tensors) != digest:", "if digest is None:"),
        ("file = aside if digest is not None and aside.is_file() else folder", "file = folder"),
        ("if type(value) is not int or not 1 <= value <= MAX_SIZE:", "if type(value) is not int or value < 1:"),
        ("if isinstance(value, bool):  # which", "if value is None:  # which"),
        ("os.replace(aside, folder / WEIGHTS_FILE)", "aside.unlink()"),
        ("if tensors is not None and digest != tensors_digest(tensors):", "if False:"),
        ('arm not in scores or scores[arm]["n"] < row["n"]}', "arm not in scores}"),
        ('return config.is_file() and "format_version" in read_json(config)', "return config.is_file()"),
        ("for last in self.fuser.last_maps:", "for last in self.fuser.last_maps[:1]:"),
        ("tensors = {name: tensor[places].clone() for name, tensor in adapter.state_dict().items()}",
         "tensors = {name: tensor[: len(places)].clone() for name, tensor in adapter.state_dict().items()}"),
        ("places = torch.tensor([config.receiver_layers.index(layer) for layer in kept])", "places = torch.tensor(list(kept)) % len(config.receiver_layers)"),
        ("places = index[None, :, None, :, None].expand(layers, -1, heads, -1, size)", "places = index.flip(1)[None, :, None, :, None].expand(layers, -1, heads, -1, size)"),
    ),
    *faults(
        "checkpoint", "tests/test_checkpoint_damage.py",
        ("if content.seal is not None and content.seal != _digest(checkpoint):", "if False:"),
        ("damaged = archive.testzip()", "damaged = None"),
    ),
    *faults(
        "endings", "tests/test_endings.py",
        ("raise SystemExit(128 + number)", "raise SystemExit(0)"),
        ("    os._exit(128 + number)\n\n\nif __name__", "    raise KeyboardInterrupt\n\n\nif __name__"),
        ("    if file.is_file():\n        return f\"the same command with", "    if True:\n        return f\"the same command with"),
    ),
    *faults(
        "data", DATA,
        ("held_out = math.ceil(self.validation_size *", "held_out = math.floor(self.validation_size *"),
        ("if texts[group[here]] == texts[group[after]] else", "if here == after else"),
        ("near.append(member if texts[member] != texts[index] else others[side][start])", "near.append(member)"),
        ("benchmarks[examples[index].benchmark].append(index)", 'benchmarks[""].append(index)'),
        ("return abs(length - other)", "return length - other"),
        ("pieces = np.where(layout.pieces > 0, layout.pieces + missing, 0)", "pieces = layout.pieces"),
        ("line[rows] = np.searchsorted(breaks, layout.ends[rows] - 1)", "line[rows] = np.searchsorted(breaks, layout.ends[rows])"),
        ("taken = {name: max(least, limit * size // total) for", "taken = {name: max(least, limit // len(sizes)) for"),
        ("if first == place or _own_id(row) is not None or", "if first == place or"),
        ("sharer = set(gold[0::2])", "sharer = set(gold[1::2])"),
        ("missing = max(0, (len(passages) + 1) // 2 - len(sharer))", "missing = max(0, len(passages) // 2 - len(sharer))"),
        ("return [span if span < 0 else next(counter) // size for span in spans]", "return [span if span < 0 else (next(counter) + 1) // size for span in spans]"),
        ("numbered = [last + 1 if span == _QUESTION else span for _, span in kept]", "numbered = [last if span == _QUESTION else span for _, span in kept]"),
        ("kept = [(token, span) for token, span in kept if span != last]", "kept = [(token, span) for token, span in kept if span not in (last, _QUESTION)]"),
        ("mask=torch.arange(width) >= width - lengths[:, None],", "mask=torch.arange(width) > width - lengths[:, None],"),
        ("return ids, torch.arange(width) < lengths[:, None]", "return ids, torch.arange(width) <= lengths[:, None]"),
        ("borders = [place * len(passages) // sharers for place in range(sharers + 1)]", "borders = [min(place, len(passages)) for place in range(sharers + 1)]"),
        ("shown = question if self.settings.share_question else \"\"", "shown = question"),
        ("if not 0 <= own_questions <= 1 or (own_questions > 0 and receiver_facts == 0):", "if not 0 <= own_questions <= 1:"),
        ("own = rng.random() < self.world.own_questions", "own = rng.random() > self.world.own_questions"),
        ("self.sampler.skip = self.done() * (self.batch_size or 1)", "self.sampler.skip = self.done()"),
        ("return [*self.candidate(text), self.tokenizer.eos_token_id][: self.settings.max_answer_tokens]",
         "return self.candidate(text)[: self.settings.max_answer_tokens]"),
        ('return error in (None, "ok")', "return True"),
        ("better = (shared > covered) & (first + step <= last)", "better = (shared >= covered) & (first + step <= last)"),
        ("drop_last=True,\n            collate_fn=", "drop_last=False,\n            collate_fn="),
        ("batches[number, self.rank :: self.num_replicas]", "batches[number, : self.size // self.num_replicas]"),
        ("return (batches // POOL + 1) * POOL", "return batches // POOL * POOL"),
        ("count * longest > tokens", "count * lengths[place] > tokens"),
        ('if row["text"] != _digest(example):', "if False:"),
        ("name = digest_of(key, ", "name = digest_of("),
    ),
    *faults(
        "data", "tests/data/test_trained_on.py",
        ("self.receiver.answer(example.answers[0])", "self.receiver.answer(example.answers[-1])"),
        ("return all(side.fits(prompt, answer, limit)", "return any(side.fits(prompt, answer, limit)"),
        ('{"examples": self.batch_size * self.trainer.world_size,', '{"examples": self.batch_size,'),
        ("for passage in passages if passage.strip()", "for passage in passages"),
    ),
    *faults(
        "evaluation", "tests/evaluation/test_statistics.py",
        ('.proportion_ci(method="wilson")', '.proportion_ci(method="exact")'),
        ("(len(p_values) - rank) * p_values[place]", "len(p_values) * p_values[place]"),
        ("largest = max(largest, min(1.0,", "largest = (min(1.0,"),
        ("after = holm([*(p for *_, p in tests), *others])", "after = [*holm([p for *_, p in tests]), *others]"),
        ("drawn = means[rng.integers(len(runs), size=size),", "drawn = means[np.arange(len(runs)),"),
    ),
    *faults(
        "evaluation", "tests/evaluation/test_audit.py tests/evaluation/test_nulls.py",
        ("max(several, key=lambda arm: _quality(arms[arm]))", "several[0]"),
        ("groups = [np.flatnonzero(benchmarks == name) for name in np.unique(benchmarks)]", "groups = [np.arange(len(rows))]"),
        ("return bool(answer.partner_answers) and answer.partner_needs_sharer and apart", "return bool(answer.partner_answers) and apart"),
    ),
    *faults(
        "evaluation", "tests/evaluation/test_controls.py",
        ("_replace(cut=tuple((~torch.isin(ids, stops).any(1)).tolist()))", "_replace(cut=(ids.shape[1] == budget,) * len(ids))"),
        ("return caches.receives_partners(self.text.read(caches))", "return self.text.read(caches)"),
        ('index = dealt(batch.index.masked_fill(~batch.receiver.mask, -1), ids).clamp(min=0)', "index = dealt(batch.index, ids)"),
    ),
    *faults(
        "training", "tests/test_training.py",
        ("trainer.accumulate_grad_batches * trainer.world_size / tokens", "trainer.world_size / tokens"),
        ("return (losses * tokens).sum()", "return losses.sum()"),
        ("if not 0 <= steps < math.inf:", "if not steps < math.inf:"),
        ("or isinstance(strategy, _OTHERS):", "or False:"),
    ),
    *faults("evaluation", "tests/test_files.py", ("fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX", "fcntl.LOCK_SH")),
    *faults(
        "data", "tests/data/test_shared_context.py",
        ("tokens + len(self.answer(answer)) <= total", "tokens <= total"),
    ),
    *faults(
        "evaluation", "tests/evaluation/test_predictions.py",
        ('known[arm, row].partner not in ("", partners.get(row))', "False"),
        ("whole = content[: content.rfind", "whole = content[: 1 + content.rfind"),
        ("return {(answer.arm, answer.example): answer", "return {(answer.arm, answer.id): answer"),
        ("if key not in held or _line(held[key]) != _line(row)]", "if key not in held]"),
        ("batches_of(loader)[rank() :: dist.get_world_size()]", "batches_of(loader)[rank() :: 2]"),
        ("            open_ended=True,\n", "            open_ended=False,\n"),
    ),
    *faults(
        "evaluation", "tests/evaluation/test_writing.py",
        ("speeds[name].append(ids.shape[1] /", "speeds[name].append(budget /"),
        ('static_cache = writing["cache"] == "static"', 'static_cache = writing["cache"] != "static"'),
        ("return max(tokens.ids.shape[1] for tokens in prompts) + 1 + budget", "return min(tokens.ids.shape[1] for tokens in prompts) + 99 + budget"),
    ),
    *faults(
        "evaluation", "tests/evaluation/test_nulls.py",
        ("counted = ~meets[own, deal]", "counted = ~meets[own, deal] | True"),
    ),
    *faults(
        "evaluation", "tests/evaluation/test_seeds.py",
        ("return OverSeeds(mean=over_seeds(values, same),", "return OverSeeds(mean=over_seeds(values),"),
    ),
    *faults(
        "evaluation", "tests/test_selection.py",
        ("share = paid / paid.sum(2, keepdim=True).clamp(min=torch.finfo().tiny)", "share = paid"),
        ("asks = question.cumsum(1).bool() & cache.mask", "asks = question & cache.mask"),
        ("sharer = link.select(sharer, batch.sharer)", "pass"),
        ("index = dealt(caches.sharer.spans_sent(batch.index), ids)", "index = dealt(batch.index, ids)"),
    ),
    *faults(
        "evaluation", "tests/evaluation/test_latency.py",
        ("run.sent = [summaries] if link.shared else by_sharer(", "run.sent = [summaries] or by_sharer("),
        ("if not (index >= 0).any():", "if False:"),
        ("present[0]] for side in kv)), present", ":] for side in kv)), present"),
        ("run.prompt = digests(batch.receiver)[0]", "run.prompt = None"),
        ("run.prompt = digest_of(example.history, example.question)", "run.prompt = None"),
        ("apart -= max(0.0,", "apart -= min(0.0,"),
        ('SHARER_STAGES = ("sharer_prefill", "pool", "write")', 'SHARER_STAGES = ("sharer_prefill", "pool")'),
    ),
    *faults(
        "evaluation", "tests/evaluation/test_text_baseline.py tests/data/test_prompts.py",
        ("return int(differ[0]) if len(differ) else width", "return width"),
        ('return [*own, *told, *ending] if self.settings.text_place == "after"', 'return [*own, *told, *ending] if self.settings.text_place == "before"'),
    ),
    *faults(
        "memory", "tests/models/test_continuation.py tests/test_memory.py",
        ("logits: Tensor = type(self.model).forward(alone).logits", "logits: Tensor = self.model.get_output_embeddings()(hidden)"),
        ("once = len(parts) == 1 or not torch.is_grad_enabled()", "once = True"),
        ("block: Tensor = checkpoint(self._block, z, use_reentrant=False)",
         "block: Tensor = checkpoint(self._block, z, use_reentrant=False, preserve_rng_state=False)"),
    ),
    *faults(
        "evaluation", "tests/test_decoding.py",
        ("return text if stop is None else text.partition(stop)[0].strip()", "return text"),
        ("ready = len(text) - held if end < 0 else end", "ready = len(text) if end < 0 else end"),
    ),
    *faults(
        "evaluation", "tests/test_shared.py",
        ('if self._get(self.config, "model")["adapter"]["pooler"] is not None:', "if True:"),
    ),
    *faults(
        "siege", "tests/data/test_controls.py",
        ("cuts = [start + 1 for start, end in places if any(", "cuts = [start + 1 for start, end in places if not any("),
        ("if len(text) > allowed:", "if False:"),
        ("if time.monotonic() > until:", "if False and time.monotonic() > until:"),
    ),
    *faults(
        "siege", "tests/models/test_store_damage.py",
        ("if file.parent.is_symlink() or not _OWN.fullmatch(file.stem):", "if file.parent.is_symlink():"),
        ("if not self.writes or file.parent.is_symlink() or not self._room(size):", "if not self.writes or not self._room(size):"),
    ),
    *faults(
        "siege", "tests/data/test_grouped.py",
        ('if "train" in before and own["train"] != before["train"]:', 'if "train" in before and own["train"] < 0:'),
    ),
    *faults("siege", "tests/test_started.py", ("signal.set_wakeup_fd(comes, warn_on_full_buffer=False)", "pass")),
    *faults(
        "siege", "tests/test_findings.py",
        ("if unlike:\n        raise DataError(f\"{len(unlike)} ids are scored", "if False:\n        raise DataError(f\"{len(unlike)} ids are scored"),
        ("read_json(summary, finite=False)", "read_json(summary)"),
    ),
    *faults(
        "session", "tests/session",
        ("hidden=past.mask.shape[1] - start", "hidden=0"),
        ("return read >= self.at + (0 if self.slots", "return read >= self.at * (0 if self.slots"),
        ("if pair[0] not in known)", "if pair[0])"),
        ("if self.state is not begun.before:", "if False:"),
        ("spans=[max(-1, span - known) for span in prompt.spans]", "spans=[max(-1, span) for span in prompt.spans]"),
        ("return said[: min(count, len(said) - 1)]", "return said[:-1]"),
        ("isinstance(text, Said)) for text in said)", "False) for text in said)"),
    ),
]  # fmt: skip
