"""Classes that differ in numbers alone are one with arguments."""

from aimgraph.source_code.parameters import Skeletons


def block(channels: int, outputs: int, steps: int) -> str:
    return f"""    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d({channels}, {outputs}, 3, padding=1)
        self.conv2 = nn.Conv2d({outputs}, {outputs + 1}, 3, stride={steps})

    def forward(self, x):
        return self.conv2(self.conv1(x)).reshape(-1, {outputs + 1})"""


def test_numbers_that_differ_are_arguments() -> None:
    found = Skeletons()
    calls = [found.call(block(*numbers), "Block") for numbers in ((3, 8, 1), (8, 16, 2), (16, 16, 2))]
    ((name, text),) = found.texts()
    assert name == "Block"
    assert "def __init__(self, inputs: int, outputs: int, conv2_outputs: int, stride: int) -> None:" in text
    assert "self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)" in text
    assert "self.conv2 = nn.Conv2d(outputs, conv2_outputs, 3, stride=stride)" in text
    assert "self.conv2_outputs = conv2_outputs" in text  # the forward needs it
    assert ".reshape(-1, self.conv2_outputs)" in text
    assert [found.resolved(call) for call in calls] == [
        "Block(3, 8, 9, 1)",
        "Block(8, 16, 17, 2)",
        "Block(16, 16, 17, 2)",
    ]


def test_a_class_that_is_made_once_has_no_arguments() -> None:
    found = Skeletons()
    call = found.call(block(3, 8, 1), "Block")
    ((_, text),) = found.texts()
    assert text == block(3, 8, 1)
    assert found.resolved(call) == "Block()"


def test_arguments_go_through_classes_that_call_others() -> None:
    found = Skeletons()
    for channels in (4, 8):
        inner = found.call(block(channels, channels, 1), "Block")
        outer = f"    def __init__(self) -> None:\n        super().__init__()\n        self.block = {inner}"
        found.call(outer, "Stage")
    texts = dict(found.texts())
    assert "self.block = Block(inputs, outputs)" in texts["Stage"]
    assert "def __init__(self, inputs: int, outputs: int) -> None:" in texts["Stage"]


def test_other_classes_of_the_same_name_are_numbered() -> None:
    found = Skeletons()
    found.call("    def forward(self, x):\n        return x + 1", "Act")
    found.call("    def forward(self, x):\n        return x * 2", "Act")
    assert [name for name, _ in found.texts()] == ["Act", "Act2"]
