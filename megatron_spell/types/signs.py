"""The signs of collapse that a run watches for; docs/debugging.md says what each means."""

from enum import StrEnum


class Sign(StrEnum):
    ENTROPY_LOW = "entropy_low"  # a role hardly chooses any more
    ENTROPY_FELL = "entropy_fell"  # it chooses far less than at first
    ENTROPY_HIGH = "entropy_high"  # it writes noise
    OUTPUT_SHORT = "output_short"  # outputs shrank to fragments
    OUTPUT_UNFINISHED = "output_unfinished"  # outputs run into their token limit
    ALWAYS_YES = "always_yes"  # nearly every vote is yes
    ALWAYS_NO = "always_no"  # right answers are voted down
    YES_AGAINST_RULE = "yes_against_rule"  # wrong answers are voted right
    REPEATED_QUESTIONS = "repeated_questions"  # a set is asked the same again
    SAME_QUESTION_EVERYWHERE = "same_question_everywhere"  # different sets are asked the same
    REWARD_AGAINST_RULE = "reward_against_rule"  # answers are rewarded that only the votes accept
    USABLE_FELL = "usable_fell"  # far fewer rounds are usable than at first
    NO_SIGNAL = "no_signal"  # a trained role has no row
