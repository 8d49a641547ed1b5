"""Cases of maps and losses, and their oracles in plain torch."""

from __future__ import annotations

import torch

from hf_interdistill.interaction.attention.maps import UnitTokens

SHAPES = [  # batch, heads, kv heads, width, tokens of each unit for each pair
    (1, 1, 1, 3, [[(0, 1)]]),
    (2, 4, 2, 5, [[(0, 2), (0, 1), (1, 3), (2, 1), (2, 2)], [(0, 1), (1, 1), (2, 4)]]),
    (3, 3, 1, 2, [[(0, 1), (1, 1), (1, 2), (2, 2)], [(1, 5), (2, 1)], [(0, 3), (0, 3), (2, 7)]]),
]


def make_case(shape, seed=0, dtype=torch.float64):
    """Random queries and keys of content tokens in unit order, their units, and a teacher's map."""
    batch, heads, kv_heads, width, pairs = shape
    generator = torch.Generator().manual_seed(seed)
    units = [[unit for unit, (_, size) in enumerate(pair) for _ in range(size)] for pair in pairs]
    content, count = max(map(len, units)), max(map(len, pairs))
    token_units = torch.tensor([row + [-1] * (content - len(row)) for row in units])
    segments = torch.tensor([[segment for segment, _ in pair] + [-1] * (count - len(pair)) for pair in pairs])
    query = torch.randn(batch, heads, content, width, generator=generator, dtype=dtype)
    key = torch.randn(batch, kv_heads, content, width, generator=generator, dtype=dtype)
    teacher = torch.rand(batch, count, count, generator=generator, dtype=dtype)
    teacher *= (segments >= 0)[:, :, None] * (segments >= 0)[:, None, :]
    return query, key, token_units, segments, teacher


def oracle_map(query, key, token_units, count, scaling, softcap=None):
    """Unit to unit attention by loops over pairs, heads, tokens and units."""
    batch, heads = query.shape[:2]
    groups = heads // key.shape[1]
    rows = []
    for b in range(batch):
        tokens = [t for t in range(token_units.shape[1]) if token_units[b, t] >= 0]
        rows.append([])
        for u in range(count):
            of_unit = [t for t in tokens if token_units[b, t] == u]
            row = [query.new_zeros(()) for _ in range(count)]
            for h in range(heads):
                for i in of_unit:
                    scores = torch.stack([(query[b, h, i] * key[b, h // groups, j]).sum() * scaling for j in tokens])
                    if softcap is not None:
                        scores = softcap * torch.tanh(scores / softcap)
                    weights = torch.softmax(scores, 0)
                    for j, weight in zip(tokens, weights, strict=True):
                        v = int(token_units[b, j])
                        row[v] = row[v] + weight / (heads * len(of_unit))
            rows[-1].append(torch.stack(row))
        rows[-1] = torch.stack(rows[-1])
    return torch.stack(rows)


def oracle_loss(student, teacher, segments, shared, loss, scope, query_mask=None):
    total = student.new_zeros(())
    for b in range(len(student)):
        values = []
        for u in range(student.shape[1]):
            row_segment = int(segments[b, u])
            if not shared[b, u] or (query_mask is not None and not query_mask[b, u]):
                continue
            columns = []
            for v in range(student.shape[1]):
                column_segment = int(segments[b, v])
                is_other = row_segment > 0 and column_segment > 0 and row_segment != column_segment
                wanted = {"joint": True, "intra": not is_other, "inter": is_other}[scope]
                if shared[b, v] and wanted:
                    columns.append(v)
            if not columns:
                continue
            t = teacher[b, u, columns] / teacher[b, u, columns].sum()
            s = student[b, u, columns] / student[b, u, columns].sum()
            values.append((t * (t / s).log()).sum() if loss == "kl" else ((t - s) ** 2).sum())
        if values:
            total = total + torch.stack(values).mean()
    return total / len(student)


def tokens_of(token_units, count):
    return UnitTokens.from_units(token_units, token_units >= 0, count)
