"""Drawing of small pictures in NumPy, for the frames of the games."""

import numpy as np

Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
BLACK: Colour = (30, 30, 30)
GREY: Colour = (200, 200, 200)
RED: Colour = (204, 71, 64)
BLUE: Colour = (58, 110, 184)
GREEN: Colour = (70, 150, 80)
YELLOW: Colour = (230, 190, 60)

# Glyphs of 3 x 5 pixels, one row of bits after the other
_GLYPHS = {
    "0": "111101101101111",
    "1": "010110010010111",
    "2": "111001111100111",
    "3": "111001111001111",
    "4": "101101111001001",
    "5": "111100111001111",
    "6": "111100111101111",
    "7": "111001010010010",
    "8": "111101111101111",
    "9": "111101111001111",
    "-": "000000111000000",
    ".": "000000000000010",
    ",": "000000000010100",
    " ": "000000000000000",
}
_GLYPH_WIDTH = 3
_GLYPH_HEIGHT = 5


class Canvas:
    """
    Picture with the origin at the top left; everything beyond its borders is cut off.

    :param width: Width in pixels
    :param height: Height in pixels
    :param colour: Colour of the background
    """

    def __init__(self, width: int, height: int, colour: Colour = WHITE) -> None:
        #: Pixels, ``(height, width, 3)``, uint8
        self.pixels = np.full((height, width, 3), colour, np.uint8)

    def rectangle(
        self, left: float, top: float, width: float, height: float, colour: Colour
    ) -> None:
        """
        Fill a rectangle.

        :param left: Left border in pixels
        :param top: Upper border in pixels
        :param width: Width in pixels
        :param height: Height in pixels
        :param colour: Colour
        """
        x, y = max(round(left), 0), max(round(top), 0)
        right, bottom = max(round(left + width), 0), max(round(top + height), 0)
        self.pixels[y:bottom, x:right] = colour

    def outline(
        self, left: float, top: float, width: float, height: float, colour: Colour, line: int = 2
    ) -> None:
        """
        Draw the border of a rectangle, inside of it.

        :param left: Left border in pixels
        :param top: Upper border in pixels
        :param width: Width in pixels
        :param height: Height in pixels
        :param colour: Colour
        :param line: Width of the line in pixels
        """
        self.rectangle(left, top, width, line, colour)
        self.rectangle(left, top + height - line, width, line, colour)
        self.rectangle(left, top, line, height, colour)
        self.rectangle(left + width - line, top, line, height, colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """
        Fill a circle.

        :param x: Column of the centre
        :param y: Row of the centre
        :param radius: Radius in pixels
        :param colour: Colour
        """
        height, width, _ = self.pixels.shape
        rows, columns = np.ogrid[:height, :width]
        self.pixels[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = colour

    def text(self, x: float, y: float, text: str, colour: Colour = BLACK, scale: int = 2) -> None:
        """
        Write digits, signs, points, commas and blanks.

        :param x: Column of the centre of the text
        :param y: Row of the centre of the text
        :param text: Text; other characters are left out
        :param colour: Colour
        :param scale: Size of a pixel of a glyph in pixels of the picture
        """
        advance = (_GLYPH_WIDTH + 1) * scale
        left = x - (advance * len(text) - scale) / 2
        top = y - _GLYPH_HEIGHT * scale / 2
        for index, character in enumerate(text):
            bits = _GLYPHS.get(character, "")
            for place, bit in enumerate(bits):
                if bit == "1":
                    row, column = divmod(place, _GLYPH_WIDTH)
                    pixel_left = left + index * advance + column * scale
                    self.rectangle(pixel_left, top + row * scale, scale, scale, colour)


def shade(share: float) -> Colour:
    """
    Colour on a scale from red through white to blue.

    :param share: Place on the scale, in [0, 1]
    :return: Colour
    """
    share = min(max(share, 0.0), 1.0)
    end = BLUE if share > 0.5 else RED
    weight = (
        abs(share - 0.5) * 1.2
    )  # at the ends not quite the full colour, so that text is legible
    mixed = [round(255 + weight * (channel - 255)) for channel in end]
    return mixed[0], mixed[1], mixed[2]
