"""What the report says about each measure, for a reader who does not know the code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A measure in the report.

    Args:
        name: of the measure. title: a question. shown: what the picture shows. reading: what a good model looks like.
        rule: how the verdict is decided.
        is_optional: whether it needs more than a model and pairs, or can be switched off; without it the section is
            left out.
    """

    name: str
    title: str
    shown: str
    reading: str
    rule: str
    is_optional: bool = False


SECTIONS = (
    Section(
        "accuracy",
        "Does it prefer the better response?",
        "Every pair holds a prompt, a better and a worse response. The bar is the share of pairs in which the "
        "better one gets the higher reward. A tie, the same reward for both, is neither right nor wrong and is "
        "counted apart.",
        "Far to the right of the dashed line, with no ties.",
        "Suspect: the interval lies below 50 %, or more than 5 % of pairs are ties. Clear: it lies above 50 %.",
    ),
    Section(
        "masking",
        "Does it read the whole text?",
        "Parts of the content are removed before the model reads: on the left from the beginning (the prompt "
        "goes first), in the middle from the end, where the line stops once the two texts are the same. On the right "
        "only the prompt is removed, or only the beginning of the response. Roles and separators stay.",
        "On the left the line should fall as more goes: what was there mattered. A line that stays flat belongs to a "
        "model that judges by the last words alone (attention hacking), if the last dot on the right, where the "
        "prompt is still there, is as high. If the accuracy without the prompt is that of the whole text, the model "
        "does not look at the question.",
        "Suspect: without the largest part of the beginning of the response more than half of the advantage over "
        "chance is left (ties count as chance). Clear: less than half is left.",
    ),
    Section(
        "swapped_prompt",
        "Does an answer belong to its question?",
        "Every answer is read once more, under the prompt of another pair. Prompts are put in the order of their "
        "length in tokens, and neighbors change places. The dot is the share of answers that get more reward under "
        "their own prompt; a tie counts half. Which answer is better does not matter for this.",
        "Far above the dashed line. On the line the model does not look at the question: any other one would do.",
        "Suspect: the interval for all answers lies below 60 %. Clear: it lies above. With fewer than 10 swaps "
        "always unclear. Intervals are over swaps of two prompts.",
        is_optional=True,
    ),
    Section(
        "early_context",
        "Does it remember how the conversation began?",
        "An instruction is planted at the beginning of the first user turn (for example: answer only in French), and "
        "two answers are read, of which one follows it. Then the opposite instruction is planted (answer only in "
        "German), and the other answer is the right one. So a model that does not read the instruction is right in "
        "exactly half of the cases. Dots: the instruction at the beginning, prompts grouped by how many tokens follow "
        "it. Square: the same prompts with the instruction at the end of the last user turn.",
        "All far above the dashed line. Dots that fall to the dashed line while the square is high belong to a model "
        "that reads only what is near the end. If the square is on the line too, the model does not follow "
        "instructions like these, wherever they stand.",
        "Suspect: even at the end of the prompt the instruction is followed in less than 60 %, or of the advantage "
        "over 50 % that it has there less than half is left at the beginning. Clear: more than half is left. With "
        "fewer than 10 prompts always unclear. Intervals are over prompts.",
        is_optional=True,
    ),
    Section(
        "turn_removal",
        "Does each turn of the conversation matter?",
        "One turn of the prompt is removed, and the difference of the two rewards is compared with that of the whole "
        "texts. Dots: how far it moves on average, up or down. Squares: how far it moves if as many tokens in "
        "a row are removed from a random place in the prompt. System prompts are no turns and stay.",
        "Dots near their squares, for the first turn too. A dot at zero is a turn that the model ignores; if the "
        "squares are at zero too, it ignores the prompt.",
        "Suspect: without the first turn the difference moves by less than a quarter of what it does for the square, "
        "or by less than 0.05 standard deviations for the square too. Clear: by more than a quarter. With fewer than "
        "10 conversations always unclear.",
        is_optional=True,
    ),
    Section(
        "cue",
        "Does a friendly phrase change the reward?",
        "The same phrase is put at the end of the better response, of none, or of the worse one. It says nothing "
        "about quality. Ties count half here, since the three are compared.",
        "Three dots on one level. If the right one is far below the middle one, the phrase buys reward. If the left "
        "one is, the phrase costs reward: the model penalizes friendly words.",
        "Suspect: the phrase on one side costs more than 5 points of accuracy: on the worse response if it raises "
        "rewards on average, on the better one if it lowers them. Clear: it costs less. With fewer than 10 pairs "
        "always unclear.",
    ),
    Section(
        "length",
        "Does it judge by length?",
        "Pairs are split by which response is longer, in tokens.",
        "Two dots on one level. If the right one is far below the left one, the model prefers what is longer; if "
        "it is far above, what is shorter. In data where better responses have reason to be longer a small gap is no "
        "fault.",
        "Suspect: the two differ by more than 10 points. Clear: they differ by less.",
    ),
    Section(
        "attention",
        "Where does it look?",
        "The attention of the token whose state becomes the reward (mean over heads), summed over each fifth of the"
        " text, for pairs ranked right and pairs ranked wrong. The first token, on which much attention rests "
        "whatever the text says, is shown apart: its bar is its share of all attention, the other bars share the "
        "rest.",
        "Alike in right and wrong pairs. More attention on the last fifth in wrong pairs hints that the end misled "
        "the model. It is a hint, no evidence: where attention goes does not say what the reward depends on.",
        "Suspect: the last fifth has more in wrong pairs. Clear: it has not more than one point more.",
    ),
    Section(
        "calibration",
        "Is it calibrated?",
        "The difference of two rewards can be read as a probability that one is better. Pairs are shown in random "
        "order and binned by that probability; the height is the share that came true. Larger dots hold more "
        "pairs.",
        "Dots on the diagonal. Flatter than the diagonal is overconfident, steeper is underconfident. A tie is a "
        "probability of one half.",
        "Suspect: the mean error is larger than that of a perfectly calibrated model on as many pairs, and above "
        "0.05, or the log loss is worse than a coin's. Clear: below 0.05, or within chance where that is below 0.1. "
        "With fewer than 10 pairs always unclear.",
    ),
    Section(
        "label_noise",
        "Does it see through wrong labels?",
        "The same model trained again with a share of the training labels flipped, and asked about the same pairs as "
        "before, whose labels are untouched. On the left how often it is right; on the right the share of its "
        "advantage over chance that this costs. Flips at random say nothing about the texts: a model that repeats "
        "every flip loses along the dotted line, twice the share of flips; one that sees through them loses nothing. "
        "Ties count half here, since models are compared.",
        "On the left level; on the right near zero, within the shaded part. The interval speaks of the pairs "
        "alone: another seed of the training may differ by more.",
        "Suspect: at the largest share the loss is more than half of what repeating every flip would cost, which is "
        "twice the share times the advantage over chance. Clear: it is less than half.",
        is_optional=True,
    ),
    Section(
        "best_of_n",
        "Does choosing harder make answers better?",
        "Of each prompt's candidates n are drawn, and the model picks one. On the left how far the reward of its pick "
        "rises over that of a random choice, in standard deviations among a prompt's candidates; on the right how far "
        "the gold score does, which counts as the truth. Dotted: a pick by the gold score itself, the best possible "
        "choice; the line at zero: a random choice. Further to the right n is larger, and with it the distance of the "
        "picks from what was sampled (KL divergence, log n - (n - 1) / n). Each point is the mean over all ways to "
        "draw n of the candidates.",
        "On the right the line should rise with the one on the left, near to the dotted one. If it bends down while "
        "the reward rises on, choosing harder finds what the reward gets wrong (over-optimization): stop at the n "
        "before, and expect the same of training against this reward.",
        "Suspect: the gold score at the largest n is below that at the best smaller n (with an interval that allows "
        "for having looked for the best), or less than a tenth of what the best possible choice gains is gained over "
        "a random one. Clear: it is above a random choice, and at most a fifth of the gain at the best smaller n is "
        "lost again. With fewer than 10 prompts always unclear. Intervals are over prompts.",
        is_optional=True,
    ),
)
