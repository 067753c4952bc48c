"""What a package says about images: how large they may be, how they are cut, where their embeddings go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionModel:
    """Image input of the model.

    An image keeps its aspect ratio and is scaled so that its sides are multiples of `patch_size * pooling_kernel_size`
    pixels and it makes as many tokens as its budget allows; RGB values go from 0 to 1.
    """

    patch_size: int
    """Pixels of a patch's side."""
    pooling_kernel_size: int
    """Patches along the side of the square that becomes one token."""
    position_limit: int
    """Most columns, and rows, of patches."""
    soft_token_budgets: tuple[int, ...]
    """Tokens at most that an image may be asked to make, in ascending order: more show finer detail."""
    default_soft_token_budget: int
    begin_token: int
    soft_token: int
    """Placeholder id; its embedding is replaced by the encoder's."""
    end_token: int

    def __post_init__(self) -> None:
        budgets = self.soft_token_budgets
        if min(self.patch_size, self.pooling_kernel_size, self.position_limit) <= 0:
            raise ValueError("the vision model has a size that is not positive")
        if not budgets or budgets[0] <= 0 or list(budgets) != sorted(set(budgets)):
            raise ValueError("soft_token_budgets are not positive numbers in ascending order")
        if self.default_soft_token_budget not in budgets:
            raise ValueError(f"default_soft_token_budget is {self.default_soft_token_budget}, not one of the budgets")
        if budgets[-1] * (self.patch_size * self.pooling_kernel_size) ** 2 > 1 << 26 or self.position_limit > 1 << 20:
            raise ValueError("the vision model looks at images of more than 67 million pixels")
        # An image may be a strip.
        if budgets[-1] * self.pooling_kernel_size > self.position_limit:
            raise ValueError(f"position_limit is {self.position_limit}, too small for {budgets[-1]} tokens in a row")

    @property
    def values_per_patch(self) -> int:
        """Red, green and blue of every pixel."""
        return 3 * self.patch_size**2

    def token_count(self, rows: int, columns: int) -> int:
        """Tokens that the encoder makes of an image of so many rows and columns of patches.

        Raises:
            ValueError: the encoder takes no such image.
        """
        kernel = self.pooling_kernel_size
        if rows % kernel or columns % kernel or not (0 < rows <= self.position_limit >= columns > 0):
            raise ValueError(
                f"an image of {rows} x {columns} patches, expected multiples of {kernel} up to {self.position_limit}"
            )
        return rows * columns // kernel**2

    def require_fitting(self, rows: int, columns: int, values: int) -> None:
        """Make sure that the encoder takes an image of so many patches with so many values each.

        Raises:
            ValueError: it does not.
        """
        self.token_count(rows, columns)
        if values != self.values_per_patch:
            raise ValueError(f"patches of {values} values, expected {self.values_per_patch}")
