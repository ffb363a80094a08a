// Pathfinder: are the two round markers on the ends of one dashed curve (label 1) or of two (label 0)?
//
// The generator of Linsley et al., "Learning long-range spatial dependencies with horizontal gated recurrent units",
// 2018, https://arxiv.org/abs/1805.08315, with the parameters of the Long Range Arena's images. It grows two target
// curves dash by dash, starts both again when one is stuck, then adds shorter curves as distractors.
//
// Every image is a function of (seed, resolution, contour length, index). All that depends on an angle is a table,
// and curves are grown on masks alone: only the image that succeeds is drawn.
//
// A mask says where the dashes are, with a margin about them. Its bytes are 255ths, as in the published generator,
// which compared their single-precision quotients: `quotient` and `Dash::limit` keep its comparisons to the last bit.
//
// Two quirks of that generator shape its images, and are kept:
//  - A first dash goes where the mask, dilated by the shape of the dash, is free. The dilation was OpenCV's, which
//    answers "less than everything" where the whole shape lies beyond the border, and the caller took this to mean that
//    nothing is free. So an angle whose shape can leave the image at a corner starts no curve (`Dash::starts`): at 32,
//    only 30 of 360 do, most attempts end at once, and few distractors find a place.
//  - A curve moves by ceil(coordinate + distance * sine). sin(pi) is 1.2e-16 in doubles, which vanishes beside a large
//    coordinate and lifts a small one to the next integer: the sum is made in doubles, with the coordinate, each time.

#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>

#include "exact.hpp"
#include "philox.hpp"
#include "stamps.hpp"

namespace {

constexpr int DEGREES = 360;
// Bytes per row of a dash, and of the border kept free about an image, which no dash crosses.
constexpr int PITCH = 32, BORDER = 16;
constexpr int CONTOUR_TRIES = 5, DASH_TRIES = 3;
// The mask counts as occupied above 0.3, and the image as full when less than this share of it is free.
constexpr int OCCUPIED = 77;
constexpr double FULL = 0.01;
constexpr double CROWDED = 1.8, DEAD_END = 1e-4;
constexpr int SCALE = 2;

struct Parameters {
  int resolution, dash_length;
  double thickness;
  int margins[2], margin_count;
  int padding, seed_distance;
  double marker_radius, continuity;
  // There are `distractor_dashes` / (dashes of a distractor) distractors.
  int distractor_dashes;
  double target_contrast, distractor_contrast;
};

constexpr Parameters PARAMETERS[] = {
    {32, 2, 0.5, {1}, 1, 1, 7, 1.5, 1.0, 20, 1.5, 2.0},
    {64, 5, 1.0, {1}, 1, 1, 12, 2.5, 1.8, 22, 0.8, 0.8},
    {128, 5, 1.5, {2, 3}, 2, 1, 20, 3.0, 1.8, 35, 0.9, 0.9},
    {256, 5, 2.0, {3}, 1, 22, 27, 5.0, 1.8, 30, 1.0, 1.0},
};
constexpr bool fits(const Parameters& p) {
  const int reach = p.dash_length + static_cast<int>(p.thickness + 0.5) + 2 * p.margins[p.margin_count - 1];
  return 2 * reach + 1 <= PITCH && reach <= BORDER;
}
static_assert(fits(PARAMETERS[0]) && fits(PARAMETERS[1]) && fits(PARAMETERS[2]) && fits(PARAMETERS[3]));
constexpr int SETTINGS = sizeof PARAMETERS / sizeof *PARAMETERS;
constexpr int LENGTHS[] = {6, 9, 14};

float quotient(int byte) { return static_cast<float>(byte / 255.0); }

struct Point {
  int y, x;
};

struct Angle {
  double radians, sine, cosine;

  explicit Angle(double radians) : radians(radians), sine(exact::sine(radians)), cosine(exact::cosine(radians)) {}

  Point move(Point from, double distance) const {
    return {static_cast<int>(std::ceil(from.y + distance * sine)),
            static_cast<int>(std::ceil(from.x + distance * cosine))};
  }
};

// The angle pi away.
double opposite(double radians) { return radians < 0 ? radians + exact::PI : radians - exact::PI; }

// A dash as bytes about its first pixel, `reach` to every side, in rows of PITCH.
struct Dash {
  std::vector<uint8_t> line, mask;
  // The mask dilated by the margin, `reach + margin` to every side.
  std::vector<uint8_t> dilated;
  // The largest byte that a mask can have for the sum of the two to stay below CROWDED.
  std::vector<uint8_t> limit;
  // The shape that has to be free where a curve starts with this dash: columns from .. to of rows top, top + 1, ...
  struct Run {
    int from, to;
  };
  int top = 0;
  std::vector<std::vector<Run>> shape;
  Point least{0, 0}, most{0, 0};
  bool starts = false;
};

std::vector<uint8_t> in_rows_of_pitch(const stamps::Picture& picture) {
  std::vector<uint8_t> bytes(static_cast<size_t>(picture.size) * PITCH);
  for (int row = 0; row < picture.size; ++row)
    std::memcpy(&bytes[row * PITCH], &picture.bytes[row * picture.size], picture.size);
  return bytes;
}

// All that depends on a resolution and a margin alone.
class Tables {
 public:
  const Parameters& parameters;
  const int margin, reach;

  struct Candidate {
    Point offset;
    double weight;
    int index;
  };
  // The first DEGREES angles are -180 .. 179 degrees, those of a first dash; the others lead to the candidates.
  std::vector<Angle> angles;
  std::vector<Angle> reversed;
  // By angle of the last dash: where the next may end, and the probability of its turn.
  std::vector<std::vector<Candidate>> candidates;
  // By degree, and then by candidate: drawn from the end backwards.
  std::vector<Dash> dashes;
  double inverted[256];

  Tables(const Parameters& parameters, int margin)
      : parameters(parameters),
        margin(margin),
        reach(parameters.dash_length + static_cast<int>(std::ceil(parameters.thickness)) + margin) {
    for (int degree = 0; degree < DEGREES; ++degree) {
      const double radians = (degree - 180) * exact::PI / 180;
      angles.emplace_back(radians);
      reversed.emplace_back(radians + exact::PI < exact::PI ? radians + exact::PI : radians - exact::PI);
    }
    const std::vector<Point> circle = cells_of_circle(parameters.dash_length + margin);
    for (const Point cell : circle) angles.emplace_back(exact::arc_tangent(cell.y, cell.x));
    for (size_t last = 0; last < angles.size(); ++last) candidates.push_back(turns(angles[last].radians, circle));

    for (int byte = 0; byte < 256; ++byte) inverted[byte] = 1 - static_cast<double>(quotient(byte));
    uint8_t limits[256];
    for (int byte = 0; byte < 256; ++byte) {
      int other = 255;
      while (static_cast<double>(quotient(other)) + static_cast<double>(quotient(byte)) >= CROWDED) --other;
      limits[byte] = static_cast<uint8_t>(other);
    }
    const int fine = 2 * reach * SCALE + 1;
    const stamps::Shrinking shrinking(fine, 2 * reach + 1);
    for (size_t i = 0; i < angles.size(); ++i) {
      dashes.push_back(drawn(i < DEGREES ? angles[i] : Angle(opposite(angles[i].radians)), shrinking, limits));
      if (i < DEGREES) shape(dashes.back());
    }
  }

 private:
  // The cells that a circle about a cell passes, one sample per pixel of its length; by row, then column.
  static std::vector<Point> cells_of_circle(int radius) {
    const double step = 360.0 / (2 * radius * exact::PI);
    const int samples = static_cast<int>(std::ceil(360.0 / step));
    std::vector<Point> cells;
    for (int i = 0; i < samples; ++i) {
      const double radians = i * step * exact::PI / 180;
      cells.push_back({static_cast<int>(std::floor(radius * exact::sine(radians))),
                       static_cast<int>(std::floor(radius * exact::cosine(radians)))});
    }
    const auto before = [](Point a, Point b) { return a.y != b.y ? a.y < b.y : a.x < b.x; };
    const auto same = [](Point a, Point b) { return a.y == b.y && a.x == b.x; };
    std::sort(cells.begin(), cells.end(), before);
    cells.erase(std::unique(cells.begin(), cells.end(), same), cells.end());
    return cells;
  }

  // The squared cosine of the turn, `continuity` times as sharp; cells beyond a right angle are left out.
  std::vector<Candidate> turns(double last, const std::vector<Point>& circle) const {
    std::vector<Candidate> found;
    for (size_t i = 0; i < circle.size(); ++i) {
      const double apart = std::abs(angles[DEGREES + i].radians - last);
      const double turn = std::min(apart, 2 * exact::PI - apart) * parameters.continuity;
      const double cosine = turn < exact::PI / 2 ? exact::cosine(turn) : 0;
      if (cosine > 0) found.push_back({circle[i], cosine * cosine, static_cast<int>(DEGREES + i)});
    }
    return found;
  }

  Dash drawn(const Angle& angle, const stamps::Shrinking& shrinking, const uint8_t* limits) const {
    const int centre = reach * SCALE, width = static_cast<int>(parameters.thickness * SCALE);
    stamps::Picture fine(2 * centre + 1);
    const Point head = angle.move({centre, centre}, parameters.dash_length * SCALE);
    const int dx = head.x - centre, dy = head.y - centre;
    if (width > 1)
      stamps::wide_line(fine, centre, centre, dx, dy, width);
    else
      stamps::thin_line(fine, centre, centre, dx, dy);
    const stamps::Picture mask = shrinking(stamps::dilated(fine, margin * SCALE, 0));
    Dash dash;
    dash.line = in_rows_of_pitch(shrinking(fine));
    dash.mask = in_rows_of_pitch(mask);
    dash.dilated = in_rows_of_pitch(stamps::dilated(mask, margin, margin));
    for (const uint8_t byte : dash.mask) dash.limit.push_back(limits[byte]);
    return dash;
  }

  // The shape of a first dash: where its mask is 255, one cell to the lower right, within L + margin of the start.
  void shape(Dash& dash) const {
    const int half = parameters.dash_length + margin, size = parameters.resolution;
    dash.least = {half, half};
    dash.most = {-half, -half};
    std::vector<Point> cells;
    for (int dy = -half; dy <= half; ++dy) {
      std::vector<Dash::Run> runs;
      for (int dx = -half; dx <= half; ++dx) {
        const int row = dy - 1 + reach, column = dx - 1 + reach;
        if (row < 0 || column < 0 || dash.mask[row * PITCH + column] != 255) continue;
        if (runs.empty() || runs.back().to != dx - 1) runs.push_back({dx, dx});
        runs.back().to = dx;
        cells.push_back({dy, dx});
        dash.least = {std::min(dash.least.y, dy), std::min(dash.least.x, dx)};
        dash.most = {std::max(dash.most.y, dy), std::max(dash.most.x, dx)};
      }
      if (dash.shape.empty() && runs.empty()) continue;
      if (dash.shape.empty()) dash.top = dy;
      dash.shape.push_back(runs);
    }
    // The first quirk: is there a cell from which the whole shape lies beyond the border? All rows further than `half`
    // from a side see it alike, and so do columns.
    std::vector<int> near;
    for (int i = 0; i <= half; ++i) near.insert(near.end(), {i, size - 1 - i});
    dash.starts = true;
    for (const int y : near)
      for (const int x : near) {
        const auto inside = [&](Point cell) {
          return y + cell.y >= 0 && y + cell.y < size && x + cell.x >= 0 && x + cell.x < size;
        };
        if (std::none_of(cells.begin(), cells.end(), inside)) dash.starts = false;
      }
  }
};

// All that depends on a resolution alone.
struct Setting {
  const Parameters& parameters;
  // By choice of margin.
  std::vector<Tables> tables;
  // From one curve's tail to the other's: 0 .. 359 degrees, whose sines differ in the last bit from those of a first
  // dash.
  std::vector<Angle> around;
  stamps::Shrinking shrinking;

  explicit Setting(const Parameters& parameters)
      : parameters(parameters), shrinking(SCALE * parameters.resolution, parameters.resolution) {
    for (int i = 0; i < parameters.margin_count; ++i) tables.emplace_back(parameters, parameters.margins[i]);
    for (int degree = 0; degree < DEGREES; ++degree) around.emplace_back(degree * exact::PI / 180);
  }
};

// Made once, by the first caller. Null for a resolution that there is not.
const Setting* setting_of(int resolution) {
  static std::once_flag made[SETTINGS];
  static std::unique_ptr<const Setting> settings[SETTINGS];
  for (int i = 0; i < SETTINGS; ++i)
    if (PARAMETERS[i].resolution == resolution) {
      std::call_once(made[i], [i] { settings[i] = std::make_unique<const Setting>(PARAMETERS[i]); });
      return settings[i].get();
    }
  return nullptr;
}

// A square of bytes with a border about it.
struct Plane {
  int size, stride;
  std::vector<uint8_t> bytes;

  explicit Plane(int size)
      : size(size), stride(size + 2 * BORDER + PITCH), bytes(static_cast<size_t>(size + 2 * BORDER) * stride) {}
  uint8_t* at(int row, int column) { return &bytes[(row + BORDER) * stride + column + BORDER]; }
  const uint8_t* at(int row, int column) const { return &bytes[(row + BORDER) * stride + column + BORDER]; }
  bool holds(Point p) const {
    return p.y >= 0 && p.y < size && p.x >= 0 && p.x < size;
  }

  // Each byte becomes the larger of itself and the stamp's; `reach` rows and columns to every side of the centre.
  void stamp(const uint8_t* stamp, Point centre, int reach) {
    for (int row = 0; row <= 2 * reach; ++row) {
      uint8_t* to = at(centre.y - reach + row, centre.x - reach);
      const uint8_t* from = stamp + row * PITCH;
      for (int i = 0; i < PITCH; ++i) to[i] = std::max(to[i], from[i]);
    }
  }

  // The same, the border left as it is.
  void stamp_within(const uint8_t* stamp, Point centre, int reach) {
    const int top = centre.y - reach, left = centre.x - reach;
    if (top >= 0 && left >= 0 && centre.y + reach < size && left + PITCH <= size) {
      this->stamp(stamp, centre, reach);
      return;
    }
    for (int row = std::max(top, 0); row <= std::min(centre.y + reach, size - 1); ++row)
      for (int column = std::max(left, 0); column <= std::min(centre.x + reach, size - 1); ++column) {
        uint8_t& to = *at(row, column);
        to = std::max(to, stamp[(row - top) * PITCH + column - left]);
      }
  }
};

// A dash in its place.
struct Placed {
  Point start;
  const Dash* dash;
};

struct Curve {
  Point tail{0, 0}, head{0, 0}, pivot{0, 0};
  int angle = 0;
  std::vector<Placed> dashes;
};

constexpr int FACTS = 15;

class Generator {
 public:
  Generator(const Setting& setting, int length)
      : setting_(setting),
        parameters_(setting.parameters),
        size_(parameters_.resolution),
        length_(length),
        words_((size_ + 63) / 64),
        mask_(size_),
        dilated_(size_),
        kept_mask_(size_),
        kept_dilated_(size_),
        targets_(size_),
        distractors_(size_),
        markers_(size_),
        occupied_(static_cast<size_t>(size_) * words_),
        taken_(occupied_.size()) {
    for (const Tables& tables : setting_.tables) {
      empty_masks_.emplace_back(size_);
      empty_dilated_.emplace_back(size_);
      for (int row = 0; row < size_; ++row)
        for (int column = 0; column < size_; ++column) {
          const int depth = std::min({row, column, size_ - 1 - row, size_ - 1 - column});
          *empty_masks_.back().at(row, column) = depth < parameters_.padding ? 255 : 0;
          *empty_dilated_.back().at(row, column) = depth < parameters_.padding + tables.margin ? 255 : 0;
        }
    }
  }

  void image(Philox& random, uint8_t* pixels, uint8_t* label, int32_t* facts) {
    *label = static_cast<uint8_t>(random.below(2));
    const int choice = random.below(parameters_.margin_count);
    now_ = &setting_.tables[choice];
    int tries = 0;
    do {
      ++tries;
    } while (!grow_targets(random, choice));
    for (Plane* plane : {&targets_, &distractors_, &markers_}) std::fill(plane->bytes.begin(), plane->bytes.end(), 0);
    for (const Curve& target : target_) draw(target, targets_);

    const int dashes = length_ / 3;
    int placed = 0;
    note_occupied();
    for (int i = 0; i < parameters_.distractor_dashes / dashes; ++i) {
      for (int trial = 0; trial < CONTOUR_TRIES; ++trial) {
        if (!grow_distractor(random, dashes)) continue;
        draw(distractor_, distractors_);
        note_occupied();
        ++placed;
        break;
      }
    }

    const int origin = random.below(2), terminal = *label ? origin : 1 - origin;
    const Point marks[2] = {target_[origin].tail, target_[terminal].head};
    for (const Point mark : marks) draw_marker(mark);
    finish(pixels);
    const int32_t all[FACTS] = {tries, placed, now_->margin, marks[0].y, marks[0].x, marks[1].y, marks[1].x,
                                target_[0].tail.y, target_[0].tail.x, target_[0].head.y, target_[0].head.x,
                                target_[1].tail.y, target_[1].tail.x, target_[1].head.y, target_[1].head.x};
    std::copy(all, all + FACTS, facts);
  }

 private:
  // A first dash of `degree` from `tail`; false where its ends leave the image.
  bool start(Curve& curve, int degree, Point tail) const {
    const Point head = now_->angles[degree].move(tail, parameters_.dash_length);
    curve.pivot = now_->reversed[degree].move(head, parameters_.dash_length + now_->margin);
    if (!mask_.holds(head) || !mask_.holds(curve.pivot)) return false;
    curve.tail = curve.head = tail;
    curve.angle = degree;
    curve.dashes.assign(1, {tail, &now_->dashes[degree]});
    return true;
  }

  bool grow_targets(Philox& random, int choice) {
    if (!start_first(random) || !start_second(random)) return false;
    mask_.bytes = empty_masks_[choice].bytes;
    dilated_.bytes = empty_dilated_[choice].bytes;
    for (int dash = 1; dash < length_; ++dash)
      for (Curve& curve : target_)
        if (!extend(curve, random)) return false;
    // The last dash of the first curve never enters the mask.
    cover(target_[1].dashes.back());
    return true;
  }

  // Far from the border the free cells of a dash are a rectangle.
  bool start_first(Philox& random) {
    const int inner = 2 * parameters_.seed_distance;
    for (int trial = 0; trial < DASH_TRIES; ++trial) {
      const int degree = random.below(DEGREES);
      const Dash& dash = now_->dashes[degree];
      const int rows = size_ - 2 * inner - (dash.most.y - dash.least.y);
      const int columns = size_ - 2 * inner - (dash.most.x - dash.least.x);
      if (!dash.starts || rows <= 0 || columns <= 0) return false;
      const int cell = random.below(rows * columns);
      if (start(target_[0], degree, {inner - dash.least.y + cell / columns, inner - dash.least.x + cell % columns}))
        return true;
    }
    return false;
  }

  bool start_second(Philox& random) {
    const Point first = target_[0].tail;
    for (int trial = 0; trial < DASH_TRIES; ++trial) {
      const int degree = random.below(DEGREES);
      const Angle& away = setting_.around[random.below(DEGREES)];
      const Point tail = {static_cast<int>(std::nearbyint(first.y + parameters_.seed_distance * away.sine)),
                          static_cast<int>(std::nearbyint(first.x + parameters_.seed_distance * away.cosine))};
      if (start(target_[1], degree, tail)) return true;
    }
    return false;
  }

  // One more dash; the mask takes up the dash before it.
  bool extend(Curve& curve, Philox& random) {
    const Point pivot = now_->angles[curve.angle].move(curve.pivot, parameters_.dash_length + 2 * now_->margin);
    const std::vector<Tables::Candidate>& candidates = now_->candidates[curve.angle];
    double sums[128], total = 0;
    int found[128], count = 0;
    for (size_t i = 0; i < candidates.size(); ++i) {
      const Point cell = {pivot.y + candidates[i].offset.y, pivot.x + candidates[i].offset.x};
      if (!mask_.holds(cell)) continue;
      const double weight = candidates[i].weight * now_->inverted[*dilated_.at(cell.y, cell.x)];
      if (weight == 0) continue;
      sums[count] = total += weight;
      found[count++] = static_cast<int>(i);
    }
    if (total < DEAD_END) return false;
    for (int trial = 0; trial < DASH_TRIES; ++trial) {
      const double drawn = random.uniform() * total;
      int pick = 0;
      while (pick < count - 1 && sums[pick] <= drawn) ++pick;
      const Tables::Candidate& candidate = candidates[found[pick]];
      const Point head = {pivot.y + candidate.offset.y, pivot.x + candidate.offset.x};
      const Placed next = {head, &now_->dashes[candidate.index]};
      if (crowded(next)) continue;
      cover(curve.dashes.back());
      curve.dashes.push_back(next);
      curve.pivot = pivot;
      curve.angle = candidate.index;
      curve.head = head;
      return true;
    }
    return false;
  }

  bool crowded(const Placed& placed) const {
    const int reach = now_->reach;
    for (int row = 0; row <= 2 * reach; ++row) {
      const uint8_t* mask = mask_.at(placed.start.y - reach + row, placed.start.x - reach);
      const uint8_t* limit = &placed.dash->limit[row * PITCH];
      uint8_t over = 0;
      for (int i = 0; i < PITCH; ++i) over |= mask[i] > limit[i];
      if (over) return true;
    }
    return false;
  }

  void cover(const Placed& placed) {
    mask_.stamp_within(placed.dash->mask.data(), placed.start, now_->reach);
    dilated_.stamp(placed.dash->dilated.data(), placed.start, now_->reach + now_->margin);
  }

  void draw(const Curve& curve, Plane& plane) const {
    for (const Placed& placed : curve.dashes) plane.stamp(placed.dash->line.data(), placed.start, now_->reach);
  }

  // What the distractors that come may not touch, as bits; and the mask to go back to when one fails.
  void note_occupied() {
    std::fill(occupied_.begin(), occupied_.end(), 0);
    int count = 0;
    for (int row = 0; row < size_; ++row)
      for (int column = 0; column < size_; ++column) {
        const uint64_t bit = *mask_.at(row, column) >= OCCUPIED;
        count += static_cast<int>(bit);
        occupied_[row * words_ + column / 64] |= bit << (column % 64);
      }
    full_ = static_cast<double>(size_ * size_ - count) / (size_ * size_) < FULL;
    for (int row = 0; row < size_; ++row)
      for (int column = 0; column < size_; column += row == 0 || row == size_ - 1 ? 1 : size_ - 1)
        occupied_[row * words_ + column / 64] |= uint64_t{1} << (column % 64);
    kept_mask_.bytes = mask_.bytes;
    kept_dilated_.bytes = dilated_.bytes;
  }

  bool grow_distractor(Philox& random, int dashes) {
    if (!start_distractor(random)) return false;
    for (int dash = 1; dash < dashes; ++dash)
      if (!extend(distractor_, random)) {
        mask_.bytes = kept_mask_.bytes;
        dilated_.bytes = kept_dilated_.bytes;
        return false;
      }
    cover(distractor_.dashes.back());
    return true;
  }

  bool start_distractor(Philox& random) {
    for (int trial = 0; trial < DASH_TRIES; ++trial) {
      const int degree = random.below(DEGREES);
      const Dash& dash = now_->dashes[degree];
      if (full_ || !dash.starts) return false;
      const int free = find_taken(dash);
      if (free == 0) return false;
      if (start(distractor_, degree, free_cell(random.below(free)))) return true;
    }
    return false;
  }

  // The cells from which the shape of the dash meets an occupied one; returns how many others there are.
  int find_taken(const Dash& dash) {
    std::fill(taken_.begin(), taken_.end(), 0);
    for (size_t i = 0; i < dash.shape.size(); ++i) {
      const int dy = dash.top + static_cast<int>(i);
      for (const Dash::Run run : dash.shape[i])
        for (int row = std::max(-dy, 0); row < std::min(size_ - dy, size_); ++row)
          for (int dx = run.from; dx <= run.to; ++dx)
            add_shifted(&occupied_[(row + dy) * words_], dx, &taken_[row * words_]);
    }
    int free = size_ * size_;
    const uint64_t whole = size_ < 64 ? (uint64_t{1} << size_) - 1 : ~uint64_t{0};
    for (uint64_t& word : taken_) free -= __builtin_popcountll(word &= whole);
    return free;
  }

  // Bit i of `to` is set where bit i + dx of `from` is.
  void add_shifted(const uint64_t* from, int dx, uint64_t* to) const {
    for (int i = 0; i < words_; ++i) {
      if (dx > 0)
        to[i] |= from[i] >> dx | (i + 1 < words_ ? from[i + 1] << (64 - dx) : 0);
      else if (dx < 0)
        to[i] |= from[i] << -dx | (i > 0 ? from[i - 1] >> (64 + dx) : 0);
      else
        to[i] |= from[i];
    }
  }

  // The free cell number `left`, by rows.
  Point free_cell(int left) const {
    for (size_t i = 0;; ++i) {
      const int width = std::min(size_, 64), free = width - __builtin_popcountll(taken_[i]);
      if (left >= free) {
        left -= free;
        continue;
      }
      uint64_t bits = ~taken_[i];
      while (left-- > 0) bits &= bits - 1;
      return {static_cast<int>(i) / words_, static_cast<int>(i) % words_ * 64 + __builtin_ctzll(bits)};
    }
  }

  // A disc, drawn fine and shrunk where it is.
  void draw_marker(Point centre) {
    const int radius = static_cast<int>(parameters_.marker_radius * SCALE), around = (radius + 1) / SCALE + 4;
    const int top = std::max(centre.y - around, 0), bottom = std::min(centre.y + around, size_ - 1);
    const int left = std::max(centre.x - around, 0), right = std::min(centre.x + around, size_ - 1);
    std::vector<uint8_t> line(SCALE * size_), narrow(static_cast<size_t>(SCALE) * size_ * size_);
    for (int y = -radius; y <= radius; ++y) {
      const int row = SCALE * centre.y + y;
      if (row < 0 || row >= SCALE * size_) continue;
      std::fill(line.begin(), line.end(), 0);
      for (int x = -radius; x <= radius; ++x) {
        const int column = SCALE * centre.x + x;
        if (y * y + x * x <= radius * radius && column >= 0 && column < SCALE * size_) line[column] = 255;
      }
      for (int i = left; i <= right; ++i) narrow[row * size_ + i] = setting_.shrinking.pixel(i, line.data(), 1);
    }
    for (int i = top; i <= bottom; ++i)
      for (int column = left; column <= right; ++column) {
        uint8_t& to = *markers_.at(i, column);
        to = std::max(to, setting_.shrinking.pixel(i, &narrow[column], size_));
      }
  }

  // The planes at their contrasts, stretched to 0 .. 255.
  void finish(uint8_t* pixels) const {
    double target[256], distractor[256], marker[256];
    for (int byte = 0; byte < 256; ++byte) {
      target[byte] = static_cast<float>(byte / 255.0 * parameters_.target_contrast);
      distractor[byte] = static_cast<float>(byte / 255.0 * parameters_.distractor_contrast);
      marker[byte] = byte / 255.0;
    }
    std::vector<double> image(static_cast<size_t>(size_) * size_);
    for (int row = 0; row < size_; ++row)
      for (int column = 0; column < size_; ++column)
        image[row * size_ + column] = std::max({target[*targets_.at(row, column)],
                                                distractor[*distractors_.at(row, column)],
                                                marker[*markers_.at(row, column)]});
    const auto [least, most] = std::minmax_element(image.begin(), image.end());
    const double base = *least, scale = 255 / (*most - base);
    for (const double value : image)
      *pixels++ = static_cast<uint8_t>(std::clamp((value - base) * scale, 0.0, 255.0) + 0.5);
  }

  const Setting& setting_;
  const Parameters& parameters_;
  const int size_, length_, words_;
  const Tables* now_ = nullptr;
  std::vector<Plane> empty_masks_, empty_dilated_;
  // The mask, and the mask dilated by the margin: cells where the next dash may end.
  Plane mask_, dilated_, kept_mask_, kept_dilated_;
  Plane targets_, distractors_, markers_;
  std::vector<uint64_t> occupied_, taken_;
  bool full_ = false;
  Curve target_[2], distractor_;
};

}  // namespace

extern "C" {

// Fills `count` images of number `first` and on: pixels (count, resolution, resolution), labels (count), and facts
// (count, 15): tries, distractors, margin, then as (row, column) the two markers, and tail and head of both targets.
// Returns the number of facts per image, or -1 for a resolution or a contour length that there is not.
int pathfinder_generate(uint64_t seed, int resolution, int contour_length, int64_t first, int64_t count,
                        uint8_t* pixels, uint8_t* labels, int32_t* facts) {
  const Setting* setting = setting_of(resolution);
  if (!setting || std::find(std::begin(LENGTHS), std::end(LENGTHS), contour_length) == std::end(LENGTHS)) return -1;
  Generator generator(*setting, contour_length);
  const int64_t area = static_cast<int64_t>(resolution) * resolution;
  for (int64_t i = 0; i < count; ++i) {
    Philox random(seed, static_cast<uint64_t>(resolution) << 32 | static_cast<uint64_t>(contour_length),
                  static_cast<uint64_t>(first + i));
    generator.image(random, pixels + i * area, labels + i, facts + i * FACTS);
  }
  return FACTS;
}
}
