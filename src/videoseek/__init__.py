"""videoseek: teach a video language model to seek clues in long video with a tool."""

TYPE_CHECKING = False  # as in typing, which importing the package does not import
if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"


def use_positions(model: "nn.Module") -> None:
    """Makes a Qwen2.5-VL model of transformers 5 place text after a clip as its weights were trained.

    Concerns `forward` and `generate`. The rule is `position_rule` in config.json, else the released weights' `max_all`;
    transformers 5 itself follows another rule, and answers otherwise. Raises ValueError for other models.
    """
    from videoseek.model import transformers_positions  # takes seconds to import: torch and transformers

    transformers_positions.use_positions(model)
