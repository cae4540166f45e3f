// Numbers as people read them.

export const NONE = "–";
export const NOT_REPORTED = "not reported by this version";

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const ONE = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const TWO = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const UP_TO_TWO = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const TIME = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

const shown = (write) => (value) => (isNumber(value) ? write(value) : NONE);

export const count = shown((value) => WHOLE.format(value));
export const amount = shown((value) =>
  value === 0 ? "0" : (value < 1 ? UP_TO_TWO : value < 10 ? ONE : WHOLE).format(value),
);
export const perSecond = shown((value) => `${amount(value)}/s`);
export const percent = shown((value) => `${(value > 0 && value < 9.95 ? ONE : WHOLE).format(value)} %`);

export const milliseconds = shown((value) => {
  if (value >= 1000) return `${TWO.format(value / 1000)} s`;
  if (value === 0) return "0 ms";
  return `${(value < 1 ? TWO : value < 100 ? ONE : WHOLE).format(value)} ms`;
});

export const seconds = shown((value) =>
  value === 0 ? "0 s" : value < 10 ? `${TWO.format(value)} s` : `${WHOLE.format(value)} s`,
);

export const bytes = shown((value) => {
  if (value < 1000) return `${WHOLE.format(value)} B`;
  for (const [unit, size] of [
    ["GB", 1e9],
    ["MB", 1e6],
    ["kB", 1e3],
  ]) {
    if (value >= size) return `${(value / size < 10 ? ONE : WHOLE).format(value / size)} ${unit}`;
  }
  return NONE;
});

export const duration = shown((value) => {
  const whole = Math.floor(value);
  if (whole < 60) return `${whole} s`;
  const [days, hours, minutes] = [
    Math.floor(whole / 86_400),
    Math.floor(whole / 3600) % 24,
    Math.floor(whole / 60) % 60,
  ];
  const both = (many, unit, few, smaller) => (few ? `${many} ${unit} ${few} ${smaller}` : `${many} ${unit}`);
  if (days) return both(days, "d", hours, "h");
  if (hours) return both(hours, "h", minutes, "min");
  return both(minutes, "min", whole % 60, "s");
});

/** The time of day of seconds since the epoch. */
export const timeOfDay = shown((value) => TIME.format(value * 1000));

/** A time stamp of the service: the time of day, with the day if it is not today. */
export function moment(stamp) {
  const date = new Date(stamp ?? Number.NaN);
  if (Number.isNaN(date.valueOf())) return NONE;
  return date.toDateString() === new Date().toDateString() ? TIME.format(date) : DAY.format(date);
}

/** How long ago a time stamp of the service was. */
export function ago(stamp) {
  const passed = (Date.now() - new Date(stamp ?? Number.NaN).valueOf()) / 1000;
  if (Number.isNaN(passed)) return NONE;
  return passed < 3 ? "now" : `${duration(passed)} ago`;
}
