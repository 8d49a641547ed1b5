"""Citations: the method, the trainer, and the usual encoders of teachers."""

from __future__ import annotations

PAPER = {
    "title": "Alleviating Attention Hacking in Discriminative Reward Modeling through Interaction Distillation",
    "id": "2508.02618",
    "citation": (
        "@misc{zang2025alleviating,\n"
        "    author       = {Jianxiang Zang and Meiling Ning and Shihan Dou and Jiazheng Zhang and Tao Gui and "
        "Qi Zhang and Xuanjing Huang},\n"
        "    title        = {{Alleviating Attention Hacking in Discriminative Reward Modeling through Interaction "
        "Distillation}},\n"
        "    year         = 2025,\n"
        "    eprint       = {arXiv:2508.02618}\n"
        "}"
    ),
}

_TRL = """@software{vonwerra2020trl,
    title   = {{TRL: Transformers Reinforcement Learning}},
    author  = {Leandro von Werra and Younes Belkada and Lewis Tunstall and Edward Beeching and Tristan Thrush and \
Nathan Lambert and Shengyi Huang and Kashif Rasul and Quentin Gallouédec},
    license = {Apache-2.0},
    url     = {https://github.com/huggingface/trl},
    year    = {2020}
}"""


def _arxiv(key: str, title: str, authors: str, year: int, number: str) -> str:
    return (
        f"@misc{{{key},\n    title  = {{{{{title}}}}},\n    author = {{{authors}}},\n    year   = {year},\n"
        f"    eprint = {{arXiv:{number}}}\n}}"
    )


_ENCODERS = {
    "bert": _arxiv(
        "devlin2018bert",
        "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
        "Jacob Devlin and Ming-Wei Chang and Kenton Lee and Kristina Toutanova",
        2018,
        "1810.04805",
    ),
    "roberta": _arxiv(
        "liu2019roberta",
        "RoBERTa: A Robustly Optimized BERT Pretraining Approach",
        "Yinhan Liu and Myle Ott and Naman Goyal and Jingfei Du and Mandar Joshi and Danqi Chen and Omer Levy and "
        "Mike Lewis and Luke Zettlemoyer and Veselin Stoyanov",
        2019,
        "1907.11692",
    ),
    "electra": _arxiv(
        "clark2020electra",
        "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators",
        "Kevin Clark and Minh-Thang Luong and Quoc V. Le and Christopher D. Manning",
        2020,
        "2003.10555",
    ),
    "deberta": _arxiv(
        "he2020deberta",
        "DeBERTa: Decoding-enhanced BERT with Disentangled Attention",
        "Pengcheng He and Xiaodong Liu and Jianfeng Gao and Weizhu Chen",
        2020,
        "2006.03654",
    ),
    "modernbert": _arxiv(
        "warner2024modernbert",
        "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder for Fast, Memory Efficient, and Long Context "
        "Finetuning and Inference",
        "Benjamin Warner and Antoine Chaffin and Benjamin Clavié and Orion Weller and Oskar Hallström and Said "
        "Taghadouini and Alexis Gallagher and Raja Biswas and Faisal Ladhak and Tom Aarsen and Nathan Cooper and "
        "Griffin Adams and Jeremy Howard and Iacopo Poli",
        2024,
        "2412.13663",
    ),
}
_ENCODERS["mpnet"] = _arxiv(
    "song2020mpnet",
    "MPNet: Masked and Permuted Pre-training for Language Understanding",
    "Kaitao Song and Xu Tan and Tao Qin and Jianfeng Lu and Tie-Yan Liu",
    2020,
    "2004.09297",
)
_ENCODERS["deberta-v2"] = _ENCODERS["deberta"]
_LLM2VEC = _arxiv(
    "behnamghader2024llm2vec",
    "LLM2Vec: Large Language Models Are Secretly Powerful Text Encoders",
    "Parishad BehnamGhader and Vaibhav Adlakha and Marius Mosbach and Dzmitry Bahdanau and Nicolas Chapados and "
    "Siva Reddy",
    2024,
    "2404.05961",
)


def citations(teacher_type: str | None, *, is_decoder: bool = False) -> dict[str, str]:
    """BibTeX entries by what they are for.

    Args:
        teacher_type: `model_type` of the teacher's encoder, `None` for a model trained without a teacher. Encoders
            whose paper is not known here have no entry: their own model cards name it.
        is_decoder: whether the teacher is a decoder without its causal mask.
    """
    entries = {} if teacher_type is None else {"The method": PAPER["citation"]}
    if teacher_type in _ENCODERS:
        entries["The architecture of the teacher's encoder"] = _ENCODERS[teacher_type]
    if is_decoder:
        entries["Decoders without their causal mask, such as the teacher"] = _LLM2VEC
    return {**entries, "The trainer that this one extends": _TRL}
