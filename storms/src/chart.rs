//! The chart: a small multiple for each fault, what was answered in time over time.

use std::{error::Error, fs, path::Path};

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    contenders::CHARTED,
    sim::setup::{END, FROM, UNTIL},
    table::{Outcome, Row, of_possible},
};

/// Drawn twice as large as it is looked at, since lines end on whole pixels.
const SIZE: (u32, u32) = (2800, 2080);
const HEAD: u32 = 150;
const COLUMNS: usize = 4;
const ROWS: usize = 4;
/// Calls of a calm second or two are too few for a smooth line, so each point is the mean of so many half seconds.
const SMOOTH: usize = 2;

const FONT: &str = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif";
const INK: RGBColor = RGBColor(34, 34, 34);
const FAINT: RGBColor = RGBColor(110, 110, 110);
const GRID: RGBColor = RGBColor(228, 228, 228);
const FAULT: RGBColor = RGBColor(250, 246, 236);
const POSSIBLE: RGBColor = RGBColor(216, 226, 220);

/// How each of those charted is drawn: colours that everybody can tell apart (Okabe and Ito), and ours, the last, is thicker.
const STROKES: [(RGBColor, u32); CHARTED.len()] = [
    (RGBColor(150, 150, 150), 3),
    (RGBColor(213, 94, 0), 4),
    (RGBColor(230, 159, 0), 4),
    (RGBColor(204, 121, 167), 4),
    (RGBColor(0, 158, 115), 4),
    (RGBColor(0, 114, 178), 7),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// Draws into that file what became of them for the first seed; and what the oracle served of each half second, in the same
/// order.
pub fn draw(file: &Path, rows: &[Row], possible: &[Vec<f64>]) -> Drawn {
    let sheet = SVGBackend::new(file, SIZE).into_drawing_area();
    sheet.fill(&WHITE)?;
    let (head, body) = sheet.split_vertically(HEAD);
    write(&head, "Calls answered in time, through fifteen faults", (40, 36), text(50, INK, FontStyle::Bold))?;
    let about = "Share of each second's calls that were answered within one second. Simulated: 50 clients call a service of ten \
                 workers that is 70 % busy; the fault lasts for the 30 s that are shaded.";
    write(&head, about, (40, 100), text(28, FAINT, FontStyle::Normal))?;
    let panels = body.split_evenly((ROWS, COLUMNS));
    for ((panel, (fault, outcomes)), possible) in panels.iter().zip(rows).zip(possible) {
        write(panel, fault.name, (40, 16), text(34, INK, FontStyle::Bold))?;
        write(panel, fault.about, (40, 58), text(22, FAINT, FontStyle::Normal))?;
        multiple(panel, &charted(outcomes), possible)?;
    }
    legend(&panels[rows.len()], rows)?;
    sheet.present()?;
    drop((panels, body, head, sheet));
    // As wide as the page that shows it, also where it is a part of the page.
    let (width, height) = SIZE;
    let fixed = format!("width=\"{width}\" height=\"{height}\" viewBox");
    let drawn = fs::read_to_string(file)?;
    fs::write(file, drawn.replacen(&fixed, "width=\"100%\" viewBox", 1))?;
    Ok(())
}

/// Those of them that are drawn, each with its stroke.
fn charted(outcomes: &[Outcome]) -> Vec<(&Outcome, RGBColor, u32)> {
    let outcome = |name| outcomes.iter().find(|outcome| outcome.contender.name == name);
    let strokes = CHARTED.iter().zip(STROKES);
    strokes.filter_map(|(who, (colour, width))| Some((outcome(who.name)?, colour, width))).collect()
}

/// One fault.
fn multiple(area: &Area<'_>, drawn: &[(&Outcome, RGBColor, u32)], possible: &[f64]) -> Drawn {
    let [from, until, end] = [FROM, UNTIL, END].map(|time| time.as_secs_f64());
    let start = from - 5.0;
    let mut chart = ChartBuilder::on(area)
        .margin_top(104)
        .margin_left(10)
        .margin_right(40)
        .margin_bottom(10)
        .x_label_area_size(50)
        .y_label_area_size(80)
        .build_cartesian_2d(start..end, 0.0..1.03)?;
    chart.draw_series([Rectangle::new([(from, 0.0), (until, 1.03)], FAULT.filled())])?;
    let mut served = points(possible, start);
    served.extend([(end, possible.last().copied().unwrap_or(0.0)), (end, 0.0), (start, 0.0)]);
    chart.draw_series([Polygon::new(served, POSSIBLE.filled())])?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID.stroke_width(2))
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT.stroke_width(2))
        .x_labels(6)
        .y_labels(3)
        .x_label_formatter(&|second| format!("{second:.0} s"))
        .y_label_formatter(&|share| format!("{:.0} %", 100.0 * share))
        .label_style(text(22, FAINT, FontStyle::Normal))
        .draw()?;
    for (outcome, colour, width) in drawn {
        if let Some(first) = outcome.seeds.first() {
            chart.draw_series(LineSeries::new(points(&first.halves, start), colour.stroke_width(*width)))?;
        }
    }
    Ok(())
}

/// Where the line goes, from that second on.
fn points(halves: &[f64], start: f64) -> Vec<(f64, f64)> {
    let mean = |(at, some): (usize, &[f64])| {
        let middle = (at as f64 + 0.5) * SMOOTH as f64 / 2.0;
        (middle, some.iter().sum::<f64>() / some.len() as f64)
    };
    halves.chunks(SMOOTH).enumerate().map(mean).filter(|(at, _)| *at > start).collect()
}

/// Who is who, and what it comes to over all faults.
fn legend(area: &Area<'_>, rows: &[Row]) -> Drawn {
    write(area, "Over all fifteen", (40, 16), text(34, INK, FontStyle::Bold))?;
    write(area, "mean of what was answered, of what could be", (40, 58), text(22, FAINT, FontStyle::Normal))?;
    area.draw(&Rectangle::new([(40, 112), (100, 140)], POSSIBLE.filled()))?;
    write(area, "what perfect knowledge could serve", (124, 112), text(28, INK, FontStyle::Normal))?;
    for ((at, (who, (colour, width))), y) in CHARTED.iter().zip(STROKES).enumerate().zip((182..).step_by(50)) {
        let outcomes = rows.iter().filter_map(|(_, all)| all.iter().find(|one| one.contender.name == who.name));
        let style = if at + 1 == CHARTED.len() { FontStyle::Bold } else { FontStyle::Normal };
        area.draw(&PathElement::new([(40, y), (100, y)], colour.stroke_width(2 * width)))?;
        write(area, who.name, (124, y - 14), text(28, INK, style))?;
        let mean = crate::table::percent(crate::table::mean(outcomes.map(of_possible)));
        area.draw(&Text::new(mean, (480, y - 14), text(28, INK, style).pos(Pos::new(HPos::Right, VPos::Top))))?;
    }
    Ok(())
}

fn text(size: u32, colour: RGBColor, style: FontStyle) -> TextStyle<'static> {
    (FONT, size, style).into_font().color(&colour).pos(Pos::new(HPos::Left, VPos::Top))
}

fn write(area: &Area<'_>, words: &str, at: (i32, i32), style: TextStyle<'_>) -> Drawn {
    Ok(area.draw(&Text::new(words.to_owned(), at, style))?)
}
