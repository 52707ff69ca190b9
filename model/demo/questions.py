"""Questions about generated scenes, each with a one-word answer that the scene's record decides."""

from __future__ import annotations

from model.demo.scene import Scene


def questions_of(scene: Scene) -> list[tuple[str, str, str]]:
    """Return (question, answer, answer type) of a scene; the types are those of MSRVTT-QA.

    Only what is true for the whole clip is asked: not the colour of an object that changes it.
    """
    asked = [
        ("what color is the background?", scene.background, "what"),
        ("what pattern does the background have?", scene.pattern, "what"),
        ("how many objects are there?", "one" if scene.second is None else "two", "how"),
    ]
    alone = scene.second is None or scene.second.shape != scene.shape
    if alone and scene.then_colour is None:
        asked.append((f"what color is the {scene.shape}?", scene.colour, "what"))
    if scene.then_colour is None and (scene.second is None or scene.second.colour != scene.colour):
        asked.append((f"what shape is {scene.colour}?", scene.shape, "what"))
    if alone and scene.then_motion is None:
        asked.append((f"how does the {scene.shape} move?", scene.motion, "how"))
    if scene.second is not None and alone:
        asked.append((f"where is the {scene.second.shape}?", scene.second.corner.replace(" ", "-"), "where"))
    return asked
