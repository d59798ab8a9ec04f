"""What a user can cause; every message is one line that names the file, the value and the way out."""


class ToolError(ValueError):
    """Something given cannot be worked with."""


class ConversionError(ToolError):
    """The model file holds something that has no equal in a Hugging Face fast tokenizer; the message names it."""


class TrainingError(ToolError):
    """sentencepiece cannot make a model of these texts; the message says why."""


class TextError(ToolError):
    """A text file, folder or token store cannot be read."""


class TokenizerFileError(ToolError):
    """A file or folder holds no tokenizer that can be read."""


class CheckpointError(ToolError):
    """A model folder's weights or settings cannot be changed as asked."""


def first_line(error: BaseException) -> str:
    """The first line of an error of a library, which may be long."""
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:300]
