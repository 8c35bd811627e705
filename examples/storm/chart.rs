//! The chart: six small multiples, what was answered in time over time.

use std::{error::Error, path::Path};

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    Outcome,
    sim::{
        contenders::Contender,
        figures::Figures,
        storms::{Storm, Times},
    },
};

/// Drawn twice as large as it is looked at, since lines end on whole pixels.
const SIZE: (u32, u32) = (2400, 1600);
const HEAD: u32 = 190;
const COLUMNS: usize = 3;
const ROWS: usize = 2;

const FONT: &str = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif";
const INK: RGBColor = RGBColor(34, 34, 34);
const FAINT: RGBColor = RGBColor(110, 110, 110);
const GRID: RGBColor = RGBColor(228, 228, 228);
const STORM: RGBColor = RGBColor(244, 239, 228);

/// Who is drawn, in this order, and how: colours that everybody can tell apart (Okabe and Ito), and ours is thicker.
const LINES: [(Contender, RGBColor, u32); 4] = [
    (Contender::NoPolicy, RGBColor(150, 150, 150), 4),
    (Contender::NaiveRetry, RGBColor(213, 94, 0), 5),
    (Contender::Tower, RGBColor(86, 180, 233), 5),
    (Contender::Buttress, RGBColor(0, 114, 178), 7),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws it into that file.
pub fn draw(file: &Path, storms: &[(Storm, Vec<Outcome>)]) -> Result<(), Box<dyn Error>> {
    let sheet = SVGBackend::new(file, SIZE).into_drawing_area();
    sheet.fill(&WHITE)?;
    let (head, body) = sheet.split_vertically(HEAD);
    heading(&head)?;
    for (panel, (storm, outcomes)) in body.split_evenly((ROWS, COLUMNS)).iter().zip(storms) {
        multiple(panel, storm, outcomes)?;
    }
    sheet.present()?;
    Ok(())
}

/// Says what is seen, and who is who.
fn heading(area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    write(area, "Calls answered in time, through six storms", (50, 40), text(50, INK, FontStyle::Bold))?;
    let about = "Share of each second's calls that were answered within two seconds; the storm is shaded. Simulated: 200 calls a \
                 second, by five clients, to a server that is half busy.";
    write(area, about, (50, 108), text(28, FAINT, FontStyle::Normal))?;
    for ((who, colour, width), x) in LINES.iter().zip([1420, 1660, 1910, 2180]) {
        area.draw(&PathElement::new([(x, 60), (x + 50, 60)], colour.stroke_width(width * 2)))?;
        write(area, who.name(), (x + 64, 44), text(32, INK, FontStyle::Normal))?;
    }
    Ok(())
}

/// One storm.
fn multiple(area: &Area<'_>, storm: &Storm, outcomes: &[Outcome]) -> Result<(), Box<dyn Error>> {
    let outcome =
        |who| outcomes.iter().find(|outcome| outcome.contender == who).and_then(|outcome| outcome.seeds.first());
    write(area, storm.name, (50, 20), text(36, INK, FontStyle::Bold))?;
    write(area, storm.about, (50, 66), text(26, FAINT, FontStyle::Normal))?;
    write(area, "back after", (50, 108), text(26, FAINT, FontStyle::Normal))?;
    let drawn: Vec<(&Figures, _, _)> =
        LINES.iter().filter_map(|(who, colour, width)| Some((outcome(*who)?, colour, *width))).collect();
    for ((figures, colour, _), x) in drawn.iter().zip((200..).step_by(140)) {
        let back = figures.back.map_or("never".into(), |time| format!("{} s", time.as_secs()));
        area.draw(&Rectangle::new([(x, 109), (x + 20, 129)], colour.filled()))?;
        write(area, &back, (x + 30, 108), text(26, INK, FontStyle::Bold))?;
    }

    let times = Times::FULL;
    let [from, until, end] = [times.from, times.until, times.end].map(|time| time.as_secs_f64());
    let mut chart = ChartBuilder::on(area)
        .margin_top(160)
        .margin_left(20)
        .margin_right(60)
        .margin_bottom(10)
        .x_label_area_size(70)
        .y_label_area_size(100)
        .build_cartesian_2d(0.0..end, 0.0..1.03)?;
    chart.draw_series([Rectangle::new([(from, 0.0), (until, 1.03)], STORM.filled())])?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID.stroke_width(2))
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT.stroke_width(2))
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|second| format!("{second:.0} s"))
        .y_label_formatter(&|share| format!("{:.0} %", 100.0 * share))
        .label_style(text(26, FAINT, FontStyle::Normal))
        .draw()?;
    for (figures, colour, width) in drawn {
        let points = figures.seconds.iter().enumerate().map(|(second, share)| (second as f64 + 0.5, *share));
        chart.draw_series(LineSeries::new(points, colour.stroke_width(width)))?;
        if figures.back.is_none() {
            let style = text(28, *colour, FontStyle::Bold).pos(Pos::new(HPos::Right, VPos::Bottom));
            chart.draw_series([Text::new("stays down", (end, 0.03), style)])?;
        }
    }
    Ok(())
}

fn text(size: u32, colour: RGBColor, style: FontStyle) -> TextStyle<'static> {
    (FONT, size, style).into_font().color(&colour).pos(Pos::new(HPos::Left, VPos::Top))
}

fn write(area: &Area<'_>, words: &str, at: (i32, i32), style: TextStyle<'_>) -> Result<(), Box<dyn Error>> {
    Ok(area.draw(&Text::new(words.to_owned(), at, style))?)
}
