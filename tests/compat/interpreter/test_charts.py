"""The gallery: figures of matplotlib, of each kind that becomes a chart, and their charts field by field."""

import pytest

# A figure as code, and what its chart says. Ticks are set, where a chart has them, so that they do not depend on matplotlib's choice.
GALLERY = {
    "lines": (
        """
plt.plot([1, 2, 3], [4.0, 5.5, 6.0], label='a')
plt.plot([1, 2, 3], [1, 2, 3])
plt.title('Lines'); plt.xlabel('time (s)'); plt.ylabel('speed [m/s]')
plt.xticks([1, 2, 3]); plt.yticks([0, 5])
""",
        {
            "type": "line",
            "title": "Lines",
            "elements": [
                {"label": "a", "points": [[1, 4], [2, 5.5], [3, 6]]},
                {"label": "Line 1", "points": [[1, 1], [2, 2], [3, 3]]},
            ],
            "x_label": "time (s)",
            "x_unit": "s",
            "x_ticks": [1, 2, 3],
            "x_tick_labels": ["1", "2", "3"],
            "x_scale": "linear",
            "y_label": "speed [m/s]",
            "y_unit": "m/s",
            "y_ticks": [0, 5],
            "y_tick_labels": ["0", "5"],
            "y_scale": "linear",
        },
    ),
    "dates": (
        """
from datetime import date
days = [date(2024, 1, 1), date(2024, 1, 2)]
plt.plot(days, [1, 2])
plt.xticks(days, ['first', 'second']); plt.yticks([1, 2])
""",
        {
            "type": "line",
            "title": None,
            "elements": [{"label": "Line 0", "points": [["2024-01-01", 1], ["2024-01-02", 2]]}],
            "x_label": None,
            "x_unit": None,
            "x_ticks": ["2024-01-01T00:00:00+00:00", "2024-01-02T00:00:00+00:00"],
            "x_tick_labels": ["first", "second"],
            "x_scale": "datetime",
            "y_label": None,
            "y_unit": None,
            "y_ticks": [1, 2],
            "y_tick_labels": ["1", "2"],
            "y_scale": "linear",
        },
    ),
    "logarithms": (
        """
plt.plot([1, 10, 100], [1, 10, 1000])
plt.xscale('log'); plt.yscale('log')
plt.xticks([1, 10, 100]); plt.yticks([1, 1000])
""",
        {
            "type": "line",
            "title": None,
            "elements": [{"label": "Line 0", "points": [[1, 1], [10, 10], [100, 1000]]}],
            "x_label": None,
            "x_unit": None,
            "x_ticks": [1, 10, 100],
            "x_tick_labels": [f"$\\mathdefault{{10^{{{power}}}}}$" for power in (0, 1, 2)],
            "x_scale": "log",
            "y_label": None,
            "y_unit": None,
            "y_ticks": [1, 1000],
            "y_tick_labels": [f"$\\mathdefault{{10^{{{power}}}}}$" for power in (0, 3)],
            "y_scale": "log",
        },
    ),
    "categories": (
        """
plt.plot(['low', 'mid', 'high'], [3, 1, 2], label='c')
plt.yticks([1, 2, 3])
""",
        {
            "type": "line",
            "title": None,
            "elements": [{"label": "c", "points": [["low", 3], ["mid", 1], ["high", 2]]}],
            "x_label": None,
            "x_unit": None,
            "x_ticks": [0, 1, 2],
            "x_tick_labels": ["low", "mid", "high"],
            "x_scale": "categorical",
            "y_label": None,
            "y_unit": None,
            "y_ticks": [1, 2, 3],
            "y_tick_labels": ["1", "2", "3"],
            "y_scale": "linear",
        },
    ),
    "scatter": (
        """
plt.scatter([1, 2], [3, 4], label='dots')
plt.scatter([5], [6])
plt.grid(True)
plt.xticks([1, 5]); plt.yticks([3, 6])
""",
        {
            "type": "scatter",
            "title": None,
            "elements": [{"label": "dots", "points": [[1, 3], [2, 4]]}, {"label": "_child1", "points": [[5, 6]]}],
            "x_label": None,
            "x_unit": None,
            "x_ticks": [1, 5],
            "x_tick_labels": ["1", "5"],
            "x_scale": "linear",
            "y_label": None,
            "y_unit": None,
            "y_ticks": [3, 6],
            "y_tick_labels": ["3", "6"],
            "y_scale": "linear",
        },
    ),
    "bars": (
        "plt.bar(['x', 'y'], [1, 2], label='one'); plt.title('Bars'); plt.ylabel('count')",
        {
            "type": "bar",
            "title": "Bars",
            "elements": [{"label": "x", "group": "one", "value": 1}, {"label": "y", "group": "one", "value": 2}],
            "x_label": None,
            "x_unit": None,
            "y_label": "count",
            "y_unit": None,
        },
    ),
    "groups of bars": (
        """
plt.bar([0, 1], [1, 2], width=0.4, label='one')
plt.bar([0.4, 1.4], [3, 4], width=0.4, label='two')
plt.xticks([0.2, 1.2], ['a', 'b'])
""",
        {
            "type": "bar",
            "title": None,
            "elements": [
                {"label": "a", "group": "one", "value": 1},
                {"label": "b", "group": "one", "value": 2},
                {"label": "a", "group": "two", "value": 3},
                {"label": "b", "group": "two", "value": 4},
            ],
            "x_label": None,
            "x_unit": None,
            "y_label": None,
            "y_unit": None,
        },
    ),
    # What lies is turned upright, its labels with it.
    "bars that lie": (
        "plt.barh(['x', 'y'], [3, 4]); plt.xlabel('amount (kg)')",
        {
            "type": "bar",
            "title": None,
            "elements": [{"label": "x", "group": "Group 0", "value": 3}, {"label": "y", "group": "Group 0", "value": 4}],
            "x_label": None,
            "x_unit": None,
            "y_label": "amount (kg)",
            "y_unit": "kg",
        },
    ),
    "pie": (
        "plt.pie([1, 3], labels=['quarter', 'rest'], autopct='%d'); plt.title('Pie')",
        {
            "type": "pie",
            "title": "Pie",
            "elements": [
                {"label": "quarter", "angle": 90, "radius": 1},
                {"label": "rest", "angle": 270, "radius": 1},
            ],
        },
    ),
    "boxes": (
        """
plt.boxplot([[1, 2, 3, 4, 5, 9], [10, 20, 30, 40, 50]], patch_artist=True, tick_labels=['a', 'b'])
plt.title('Boxes'); plt.xlabel('kind')
""",
        {
            "type": "box_and_whisker",
            "title": "Boxes",
            "elements": [
                {
                    "label": "a",
                    "min": 1,
                    "first_quartile": 2.25,
                    "median": 3.5,
                    "third_quartile": 4.75,
                    "max": 5,
                    "outliers": [9],
                },
                {
                    "label": "b",
                    "min": 10,
                    "first_quartile": 20,
                    "median": 30,
                    "third_quartile": 40,
                    "max": 50,
                    "outliers": [],
                },
            ],
            "x_label": "kind",
            "x_unit": None,
            "y_label": None,
            "y_unit": None,
        },
    ),
    "several in one": (
        """
figure, (left, right) = plt.subplots(1, 2)
figure.suptitle('Both')
left.bar(['x', 'y'], [1, 2])
right.pie([1, 1], labels=['a', 'b'])
""",
        {
            "type": "superchart",
            "title": "Both",
            "elements": [
                {
                    "type": "bar",
                    "title": None,
                    "elements": [
                        {"label": "x", "group": "Group 0", "value": 1},
                        {"label": "y", "group": "Group 0", "value": 2},
                    ],
                    "x_label": None,
                    "x_unit": None,
                    "y_label": None,
                    "y_unit": None,
                },
                {
                    "type": "pie",
                    "title": None,
                    "elements": [{"label": "a", "angle": 180, "radius": 1}, {"label": "b", "angle": 180, "radius": 1}],
                },
            ],
        },
    ),
    "drawn by pandas": (
        """
import pandas
pandas.DataFrame({'n': [1, 2], 'm': [3, 4]}, index=['p', 'q']).plot.bar(rot=0, title='Frame')
""",
        {
            "type": "bar",
            "title": "Frame",
            "elements": [
                {"label": "p", "group": "n", "value": 1},
                {"label": "q", "group": "n", "value": 2},
                {"label": "p", "group": "m", "value": 3},
                {"label": "q", "group": "m", "value": 4},
            ],
            "x_label": None,
            "x_unit": None,
            "y_label": None,
            "y_unit": None,
        },
    ),
    "of no known kind": (
        "plt.imshow([[0, 1], [1, 0]]); plt.title('Pixels')",
        {"type": "unknown", "title": "Pixels", "elements": []},
    ),
}


@pytest.mark.parametrize("name", GALLERY)
def test_the_gallery(port, name):
    code, expected = GALLERY[name]
    lines = port.lines(f"import matplotlib.pyplot as plt\n{code}\nplt.show()")
    # Neither warnings nor errors, and the one result.
    assert [line["type"] for line in lines] == ["number_of_executions", "result", "end_of_execution"], lines
    result = lines[1]
    assert result["chart"] == expected
    assert result["png"].startswith("iVBOR") and not result["is_main_result"]


def test_the_package_knows_every_kind(sandbox):
    """The classes of the official package, of the same charts."""
    from e2b_code_interpreter.charts import BarChart, BoxAndWhiskerChart, LineChart, PieChart, ScatterChart, SuperChart

    kinds = {
        "lines": LineChart,
        "scatter": ScatterChart,
        "bars": BarChart,
        "pie": PieChart,
        "boxes": BoxAndWhiskerChart,
        "several in one": SuperChart,
    }
    for name, kind in kinds.items():
        code, expected = GALLERY[name]
        (result,) = sandbox.run_code(f"import matplotlib.pyplot as plt\n{code}\nplt.show()").results
        assert type(result.chart) is kind, name
        assert result.chart.title == expected["title"] and len(result.chart.elements) == len(expected["elements"])
