import type { Picture } from '@soulbox/agents'

/** What the sandbox tells of a chart that matplotlib drew; kinds that are not drawn here are shown as the picture. */
type ChartData =
  | ({ type: 'line' | 'scatter'; elements: { label: string; points: [number | string, number | string][] }[] } & Axes)
  | ({ type: 'bar'; elements: { label: string; group: string; value: number }[] } & Axes)
  | { type: 'pie'; title: string | null; elements: { label: string; angle: number; radius: number }[] }

interface Axes {
  title: string | null
  x_label: string | null
  y_label: string | null
}

const WIDTH = 640
const HEIGHT = 400
const EDGE = 50
const COLOURS = ['#1f77b4', '#ff7f0e', '#2ca02c', '#d62728', '#9467bd', '#8c564b', '#e377c2', '#7f7f7f']
const colour = (index: number) => COLOURS[index % COLOURS.length]

export function Chart({ picture }: { picture: Picture }) {
  const chart = picture.chart as ChartData | undefined
  switch (chart?.type) {
    case 'line':
    case 'scatter':
      return <Points chart={chart} />
    case 'bar':
      return <Bars chart={chart} />
    case 'pie':
      return <Pie chart={chart} />
    default:
      return <img src={`data:${picture.mediaType};base64,${picture.data}`} alt="made by the code" />
  }
}

/** Dates come as text. */
const number = (value: number | string) => (typeof value === 'number' ? value : Date.parse(value))

/** A function from values to places. */
function scale(values: number[], from: number, to: number) {
  const low = Math.min(...values)
  const span = Math.max(...values) - low || 1
  const place = (value: number) => from + ((value - low) / span) * (to - from)
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => low + part * span)
  return { place, ticks }
}

const short = (value: number) => Number(value.toPrecision(3)).toString()

function Frame({ chart, children }: { chart: Axes; children: React.ReactNode }) {
  return (
    <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={chart.title ?? 'chart'} fontSize="12" textAnchor="middle">
      <text x={WIDTH / 2} y={20} fontSize="16">
        {chart.title}
      </text>
      <text x={WIDTH / 2} y={HEIGHT - 8}>
        {chart.x_label}
      </text>
      <text transform={`translate(12 ${HEIGHT / 2}) rotate(-90)`}>{chart.y_label}</text>
      <path d={`M${EDGE} ${EDGE / 2}V${HEIGHT - EDGE}H${WIDTH - EDGE / 2}`} fill="none" stroke="#888" />
      {children}
    </svg>
  )
}

function Points({ chart }: { chart: Extract<ChartData, { type: 'line' | 'scatter' }> }) {
  const all = chart.elements.flatMap(({ points }) => points)
  const dates = typeof all[0]?.[0] === 'string'
  const x = scale(all.map(([value]) => number(value)), EDGE, WIDTH - EDGE / 2)
  const y = scale(all.map(([, value]) => number(value)), HEIGHT - EDGE, EDGE)
  return (
    <Frame chart={chart}>
      {x.ticks.map((tick) => (
        <text key={tick} x={x.place(tick)} y={HEIGHT - EDGE + 16}>
          {dates ? new Date(tick).toISOString().slice(0, 10) : short(tick)}
        </text>
      ))}
      {y.ticks.map((tick) => (
        <text key={tick} x={EDGE - 6} y={y.place(tick) + 4} textAnchor="end">
          {short(tick)}
        </text>
      ))}
      {chart.elements.map(({ label, points }, index) => {
        const places = points.map(([left, right]) => [x.place(number(left)), y.place(number(right))] as const)
        return (
          <g key={label} data-series={label} fill={colour(index)} stroke={colour(index)}>
            {chart.type === 'line' ? (
              <polyline points={places.map((place) => place.join(',')).join(' ')} fill="none" strokeWidth="2" />
            ) : (
              places.map(([cx, cy], point) => <circle key={point} cx={cx} cy={cy} r="3" />)
            )}
          </g>
        )
      })}
    </Frame>
  )
}

function Bars({ chart }: { chart: Extract<ChartData, { type: 'bar' }> }) {
  const labels = [...new Set(chart.elements.map(({ label }) => label))]
  const groups = [...new Set(chart.elements.map(({ group }) => group))]
  const y = scale([0, ...chart.elements.map(({ value }) => value)], HEIGHT - EDGE, EDGE)
  const room = (WIDTH - 1.5 * EDGE) / labels.length
  const width = (room * 0.8) / groups.length
  return (
    <Frame chart={chart}>
      {labels.map((label, index) => (
        <text key={label} x={EDGE + room * (index + 0.5)} y={HEIGHT - EDGE + 16}>
          {label}
        </text>
      ))}
      {y.ticks.map((tick) => (
        <text key={tick} x={EDGE - 6} y={y.place(tick) + 4} textAnchor="end">
          {short(tick)}
        </text>
      ))}
      {chart.elements.map(({ label, group, value }) => {
        const left = EDGE + room * (labels.indexOf(label) + 0.1) + width * groups.indexOf(group)
        const [top, bottom] = [y.place(Math.max(0, value)), y.place(Math.min(0, value))]
        return (
          <rect
            key={`${group} ${label}`}
            x={left}
            y={top}
            width={width}
            height={bottom - top}
            fill={colour(groups.indexOf(group))}
          >
            <title>{`${label}: ${value}`}</title>
          </rect>
        )
      })}
    </Frame>
  )
}

function Pie({ chart }: { chart: Extract<ChartData, { type: 'pie' }> }) {
  const radius = HEIGHT / 2 - EDGE
  const point = (angle: number, far: number) => {
    const turn = (angle * Math.PI) / 180
    return `${WIDTH / 2 + far * Math.cos(turn)} ${HEIGHT / 2 - far * Math.sin(turn)}`
  }
  let begin = 0
  return (
    <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={chart.title ?? 'chart'} fontSize="12" textAnchor="middle">
      <text x={WIDTH / 2} y={20} fontSize="16">
        {chart.title}
      </text>
      {chart.elements.map(({ label, angle }, index) => {
        const end = begin + angle
        const [x, y] = point(begin + angle / 2, radius + 20).split(' ')
        const arc = `A${radius} ${radius} 0 ${angle > 180 ? 1 : 0} 0 ${point(end, radius)}`
        const path = `M${WIDTH / 2} ${HEIGHT / 2}L${point(begin, radius)}${arc}Z`
        begin = end
        return (
          <g key={label}>
            <path d={path} fill={colour(index)} />
            <text x={x} y={y}>
              {label}
            </text>
          </g>
        )
      })}
    </svg>
  )
}
