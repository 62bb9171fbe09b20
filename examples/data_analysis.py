"""From a CSV file to a table and a chart, in a sandbox: `pip install e2b-code-interpreter`, then

    eval "$(soulbox env)"
    python examples/data_analysis.py [CHART.PNG]

The template is INTERPRETER_TEMPLATE, or the one that the package asks for, `code-interpreter-v1`.
"""

import base64
import os
import sys
from pathlib import Path

from e2b_code_interpreter import Sandbox

MEASURED = """month,city,rain_mm
1,Bergen,237
2,Bergen,203
3,Bergen,212
4,Bergen,136
1,Berlin,42
2,Berlin,33
3,Berlin,41
4,Berlin,37
1,Lisbon,100
2,Lisbon,85
3,Lisbon,53
4,Lisbon,68
"""

TABLE = """
import pandas as pd
rain = pd.read_csv("/home/user/rain.csv")
total = rain.groupby("city", as_index=False)["rain_mm"].sum().sort_values("rain_mm", ascending=False)
total
"""

CHART = """
import matplotlib.pyplot as plt
for city, rows in rain.groupby("city"):
    plt.plot(rows["month"], rows["rain_mm"], marker="o", label=city)
plt.title("Rain from January to April")
plt.xlabel("month")
plt.ylabel("rain (mm)")
plt.xticks([1, 2, 3, 4])
plt.legend()
plt.show()
"""


def main() -> None:
    chart_file = Path(sys.argv[1] if len(sys.argv) > 1 else "rain.png")
    with Sandbox.create(os.environ.get("INTERPRETER_TEMPLATE"), timeout=120) as sandbox:
        sandbox.files.write("/home/user/rain.csv", MEASURED)

        table = sandbox.run_code(TABLE)
        assert table.error is None, table.error.traceback
        print(table.text)
        data = table.results[0].data
        assert data == {"city": ["Bergen", "Lisbon", "Berlin"], "rain_mm": [788, 306, 153]}, data

        drawn = sandbox.run_code(CHART)
        assert drawn.error is None, drawn.error.traceback
        (result,) = drawn.results
        chart_file.write_bytes(base64.b64decode(result.png))
        print(f"{chart_file}: a {result.chart.type.value} chart of {', '.join(line.label for line in result.chart.elements)}")
        assert {line.label: line.points[0][1] for line in result.chart.elements} == {"Bergen": 237, "Berlin": 42, "Lisbon": 100}


if __name__ == "__main__":
    main()
