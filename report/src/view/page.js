"use strict";
(() => {
  const all = (what, within) => [...(within || document).querySelectorAll(what)];
  const make = (name, text) => { const element = document.createElement(name); element.textContent = text; return element; };
  const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

  // The colours are those of the system, until the user clicks the button.
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const nameTheme = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", (isDark() ? "Light" : "Dark") + " colours");
  };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  system.addEventListener("change", nameTheme);
  nameTheme();
  theme.hidden = false;

  // Sorting: each column head becomes a button.
  const key = (cell) => {
    const text = (cell.dataset.v === undefined ? cell.textContent : cell.dataset.v).trim();
    if (text === "") return { rank: 2 };
    if (/^-?\d+$/.test(text)) return { rank: 0, number: BigInt(text), exact: true };
    if (/^-?\d+\.\d+$/.test(text)) return { rank: 0, number: Number(text) };
    return { rank: 1, text };
  };
  const order = (one, next, down) => {
    // Empty cells come last in both directions.
    if (one.rank === 2 || next.rank === 2) return one.rank - next.rank;
    const sign = down ? -1 : 1;
    if (one.rank !== next.rank) return sign * (one.rank - next.rank);
    if (one.rank === 1) return sign * one.text.localeCompare(next.text, "en", { numeric: true });
    return sign * (one.number < next.number ? -1 : one.number > next.number ? 1 : 0);
  };
  for (const table of all("table")) {
    const heads = all("thead tr:last-child th", table);
    heads.forEach((head, column) => {
      const button = make("button", head.textContent);
      button.type = "button";
      button.setAttribute("aria-label", "Sort by " + head.dataset.label);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const down = before ? before === "ascending" : head.classList.contains("number");
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => ({ row, key: key(row.cells[column]) }));
        rows.sort((one, next) => order(one.key, next.key, down));
        body.append(...rows.map(({ row }) => row));
      });
      head.replaceChildren(button);
    });
  }

  // Filters: show the rows that contain all words.
  for (const input of all(".filter input")) {
    const rows = [...document.getElementById(input.dataset.table).tBodies[0].rows];
    const output = input.closest(".filter").querySelector("output");
    const texts = rows.map((row) => [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase());
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, index) => {
        row.hidden = !words.every((word) => texts[index].includes(word));
        shown += row.hidden ? 0 : 1;
      });
      output.textContent = shown === rows.length ? rows.length + " rows" : shown + " of " + rows.length + " rows";
    };
    input.addEventListener("input", filter);
    input.addEventListener("keydown", (event) => { if (event.key === "Escape") { input.value = ""; filter(); } });
    input.closest(".filter").hidden = false;
  }

  // Escape hides a tooltip until the next focus or hover.
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") all(".strips").forEach((strips) => strips.classList.add("quiet"));
  });
  for (const strips of all(".strips")) {
    for (const name of ["focus", "mouseenter"]) strips.addEventListener(name, () => strips.classList.remove("quiet"));
  }

  const data = document.getElementById("data");
  if (data) timeline(JSON.parse(data.textContent));

  function timeline(trace) {
    const SVG = "http" + "://www.w3.org/2000/svg";
    const WIDTH = 1000;
    // The most records of a lane that are drawn one by one. More are drawn as counts.
    const SINGLE = 700;
    // The number of counts over the visible time.
    const BINS = 500;
    const from = BigInt(trace.from);
    const lanes = document.getElementById("lanes");
    const range = document.getElementById("range");
    const times = document.getElementById("times").querySelector("div");
    const output = document.getElementById("record");
    const count = trace.when.length;
    const first = count ? trace.when[0] : 0;
    const widest = Math.max(...trace.counts.map((bins) => bins.reduce((most, bin) => Math.max(most, bin), 0)), 1);
    const lane = trace.counts.map(() => []);
    trace.vcpu.forEach((vcpu, index) => lane[vcpu].push(index));
    // The longest exits, as in timeline.rs: at most 100, and only those that take 10 times the median.
    const length = (index) => trace.kvm[index] + trace.vmm[index];
    const exits = trace.when.map((_, index) => index).filter((index) => !(trace.flags[index] & 1));
    exits.sort((one, next) => length(next) - length(one));
    const median = exits.length ? length(exits[exits.length >> 1]) : 0;
    const long = exits.slice(0, 100).filter((index) => length(index) > 10 * median);
    const view = { from: 0, span: trace.span };
    let chosen = -1;

    const drawings = all(".lane svg", lanes).map((svg) => {
      const path = (name) => {
        const made = document.createElementNS(SVG, "path");
        made.setAttribute("class", name);
        svg.append(made);
        return made;
      };
      svg.replaceChildren();
      return { svg, count: path("count"), long: path("long"), at: path("at"), kvm: path("kvm"), vmm: path("vmm"), chosen: path("chosen") };
    });

    // The same format as that of `duration` in table.rs.
    const duration = (time) => {
      const units = [[1e9, "s"], [1e6, "ms"], [1e3, "\u00b5s"]];
      const [size, name] = units.find(([size]) => time >= size * 0.9995) || [1, "ns"];
      const value = time / size;
      const digits = size === 1 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
      return value.toFixed(digits) + " " + name;
    };
    // A time of the run, with enough digits to distinguish the two edges of the view.
    const point = (time) => {
      const digits = clamp(Math.ceil(Math.log10(1e8 / Math.max(view.span, 1))), 2, 6);
      return (Number(from) / 1e6 + time / 1e6).toFixed(digits) + " ms";
    };
    // Returns the position of the first index whose record is not before a time.
    const find = (indexes, time) => {
      let low = 0, high = indexes.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (trace.when[indexes[middle]] < time) low = middle + 1; else high = middle;
      }
      return low;
    };
    const x = (time) => ((time - view.from) / view.span) * WIDTH;
    const box = (left, right, top, bottom) => {
      const from = clamp(left, -5, WIDTH + 5);
      const to = Math.max(clamp(right, -5, WIDTH + 5), from + 0.8);
      return "M" + from.toFixed(2) + " " + top + "H" + to.toFixed(2) + "V" + bottom + "H" + from.toFixed(2) + "Z";
    };

    function drawLane(drawing, vcpu) {
      const indexes = lane[vcpu], bins = trace.counts[vcpu];
      const end = view.from + view.span;
      const low = find(indexes, view.from);
      const high = find(indexes, end);
      const before = trace.skipped > 0 && view.from < first;
      let path = { count: "", long: "", at: "", kvm: "", vmm: "", chosen: "" };
      if (high - low <= SINGLE && !before) {
        for (let place = Math.max(low - 1, 0); place < Math.min(high + 1, indexes.length); place++) {
          const index = indexes[place];
          const when = trace.when[index];
          path.at += "M" + x(when).toFixed(2) + " 2V46";
          if (!(trace.flags[index] & 1)) path.kvm += box(x(when - trace.kvm[index]), x(when), 6, 22);
          path.vmm += box(x(when), x(when + trace.vmm[index]), 26, 42);
        }
      } else if (before) {
        // The page has only the counts of these records.
        const part = trace.span / bins.length;
        bins.forEach((exits, bin) => {
          const left = x(bin * part), right = x((bin + 1) * part);
          if (exits && right > 0 && left < WIDTH) path.count += box(left, right, 48 - (44 * exits) / widest, 48);
        });
      } else {
        const sums = new Array(BINS).fill(0);
        for (let place = low; place < high; place++) {
          const bin = Math.floor(((trace.when[indexes[place]] - view.from) / view.span) * BINS);
          sums[clamp(bin, 0, BINS - 1)]++;
        }
        const most = Math.max(...sums, 1);
        sums.forEach((exits, bin) => {
          if (exits) path.count += box((bin * WIDTH) / BINS, ((bin + 1) * WIDTH) / BINS, 48 - (44 * exits) / most, 48);
        });
      }
      if (path.count) {
        for (const index of long.filter((index) => trace.vcpu[index] === vcpu)) {
          const when = trace.when[index];
          const left = x(when - trace.kvm[index]), right = x(when + trace.vmm[index]);
          if (right > 0 && left < WIDTH) path.long += box(left, right, 0, 5);
        }
      }
      if (chosen >= 0 && trace.vcpu[chosen] === vcpu && trace.when[chosen] >= view.from && trace.when[chosen] <= end) {
        path.chosen = "M" + x(trace.when[chosen]).toFixed(2) + " 0V48";
      }
      for (const name of Object.keys(path)) drawing[name].setAttribute("d", path[name]);
      return high - low;
    }

    function draw() {
      let visible = 0;
      drawings.forEach((drawing, vcpu) => { visible += drawLane(drawing, vcpu); });
      const end = view.from + view.span;
      const more = trace.skipped > 0 && view.from < first ? ", and earlier ones" : "";
      range.textContent = point(view.from) + " to " + point(end) + " (" + duration(view.span) + "): " + visible + " records" + more;
      const labels = [...times.children];
      labels.forEach((label, index) => { label.textContent = point(view.from + (view.span * index) / (labels.length - 1)); });
    }

    function show(start, span) {
      view.span = clamp(span, Math.min(100, trace.span), trace.span);
      view.from = clamp(start, 0, trace.span - view.span);
      draw();
    }
    const zoom = (factor, at) => {
      const middle = at === undefined ? view.from + view.span / 2 : at;
      const share = (middle - view.from) / view.span;
      const span = clamp(view.span * factor, Math.min(100, trace.span), trace.span);
      show(middle - share * span, span);
    };
    const move = (part) => show(view.from + part * view.span, view.span);

    function choose(index) {
      if (!count) return;
      chosen = clamp(index, 0, count - 1);
      const when = trace.when[chosen];
      if (when < view.from || when > view.from + view.span) show(when - view.span / 2, view.span); else draw();
      const parts = [
        (trace.skipped + chosen + 1) + ". at " + point(when), "vCPU " + trace.vcpu[chosen], trace.sites[trace.site[chosen]],
        trace.value[chosen] ? "value " + trace.value[chosen] : "", trace.rip[chosen] ? "RIP " + trace.rip[chosen] : "",
        duration(trace.kvm[chosen]) + " " + trace.guest, duration(trace.vmm[chosen]) + " in the VMM",
        trace.flags[chosen] & 1 ? "without an exit" : "", trace.flags[chosen] & 2 ? "the guest got #GP" : "",
      ];
      output.textContent = parts.filter(Boolean).join("; ");
    }
    const every = trace.when.map((_, index) => index);
    const step = (by) => {
      const inView = chosen >= 0 && trace.when[chosen] >= view.from && trace.when[chosen] <= view.from + view.span;
      choose(inView ? chosen + by : find(every, view.from + (by > 0 ? 0 : view.span)) - (by > 0 ? 0 : 1));
    };

    const actions = {
      in: () => zoom(0.5), out: () => zoom(2), left: () => move(-0.25), right: () => move(0.25), all: () => show(0, trace.span),
      next: () => step(1), previous: () => step(-1), begin: () => show(0, view.span), end: () => show(trace.span, view.span),
    };
    const keys = {
      "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right", 0: "all", ".": "next", ",": "previous",
      Home: "begin", End: "end",
    };
    lanes.addEventListener("keydown", (event) => {
      const action = event.ctrlKey || event.altKey || event.metaKey ? undefined : keys[event.key];
      if (action) { event.preventDefault(); actions[action](); }
    });
    const controls = document.querySelector(".controls");
    controls.addEventListener("click", (event) => {
      const action = event.target.dataset && event.target.dataset.do;
      if (action) actions[action]();
    });

    const timeAt = (event) => {
      const place = drawings[0].svg.getBoundingClientRect();
      return view.from + ((event.clientX - place.left) / place.width) * view.span;
    };
    let drag = null;
    lanes.addEventListener("pointerdown", (event) => {
      drag = { x: event.clientX, from: view.from, moved: false };
      lanes.setPointerCapture(event.pointerId);
    });
    lanes.addEventListener("pointermove", (event) => {
      if (!drag) return;
      const by = event.clientX - drag.x;
      drag.moved = drag.moved || Math.abs(by) > 4;
      if (drag.moved) show(drag.from - (by / drawings[0].svg.getBoundingClientRect().width) * view.span, view.span);
    });
    lanes.addEventListener("pointerup", (event) => {
      if (drag && !drag.moved && count) {
        // Select the nearest record in the lane under the pointer.
        const hit = all(".lane", lanes).findIndex((one) => {
          const place = one.getBoundingClientRect();
          return event.clientY >= place.top && event.clientY <= place.bottom;
        });
        const indexes = hit >= 0 && lane[hit].length ? lane[hit] : every;
        const place = find(indexes, timeAt(event));
        const near = [indexes[place - 1], indexes[place]].filter((index) => index !== undefined);
        near.sort((one, next) => Math.abs(trace.when[one] - timeAt(event)) - Math.abs(trace.when[next] - timeAt(event)));
        choose(near[0]);
      }
      drag = null;
    });
    lanes.addEventListener("pointercancel", () => { drag = null; });
    lanes.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      zoom(event.deltaY < 0 ? 0.8 : 1.25, timeAt(event));
    }, { passive: false });

    lanes.tabIndex = 0;
    lanes.classList.add("live");
    controls.hidden = false;
    all(".scripted").forEach((hint) => { hint.hidden = false; });
    draw();
  }
})();
