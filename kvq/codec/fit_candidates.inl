// Which scales (and centers) the least squares fits try, by number of levels.
//
// Chosen by greedy search over a fine grid. What is lost against every possible scale (symmetric)
// or against a dense search over scales and centers (affine), mean squared error in dB, groups of
// 64; a plain min-max loses 0.4 to 10 dB:
//
//   levels                               2     3     4     8    16    32    64   256
//   symmetric  Gaussian, rotated rows  .000  .001  .001  .005  .006  .009  .02   .12
//              Laplacian               .000  .002  .002  .002  .002  .003  .012  .09
//   affine     Gaussian, rotated rows  .007  .03   .03   .06   .07   .10   .15   .27
//              skewed                  .008  .03   .03   .04   .06   .11   .16   .30
//
// Groups of 16 lose up to .08 dB below 64 levels (.5 at 256), groups of 256 up to .04 (symmetric).
namespace kvq {
namespace {

struct Candidate {
  float ratio;           // trial scale / base scale (fit.h)
  float offset = 0;      // affine: trial center - middle, in trial scales
  bool of_mean = false;  // symmetric: the base is the mean of |x|, else it fits the largest |x|
};

struct Candidates {
  const Candidate* begin;
  const Candidate* end;
};

template <int Count>
constexpr Candidates span_of(const Candidate (&candidates)[Count]) {
  return {candidates, candidates + Count};
}

// Few levels: the best scale follows the bulk of a group or its largest members, so both are bases.
constexpr Candidate kSymmetric2[] = {{2.0F, 0, true}};  // codes are signs: one fit is exact
constexpr Candidate kSymmetric3[] = {{1.45F, 0, true}, {1.6F, 0, true}, {1.8F, 0, true},
                                     {2.05F, 0, true}, {0.38F},         {0.48F},
                                     {0.59F},          {0.84F}};
constexpr Candidate kSymmetric4[] = {{1.1F, 0, true},  {1.2F, 0, true},  {1.3F, 0, true},
                                     {1.43F, 0, true}, {1.63F, 0, true}, {2.3F, 0, true},
                                     {0.55F},          {0.65F}};
constexpr Candidate kSymmetric8[] = {{0.52F}, {0.615F}, {0.675F}, {0.725F},
                                     {0.78F}, {0.84F},  {0.905F}, {0.995F}};
constexpr Candidate kSymmetric16[] = {{0.79F},  {0.85F}, {0.885F}, {0.92F},
                                      {0.955F}, {0.99F}, {1.025F}, {1.12F}};
constexpr Candidate kSymmetric32[] = {{0.92F}, {0.95F}, {0.97F},  {0.99F},
                                      {1.01F}, {1.05F}, {1.075F}, {1.12F}};
constexpr Candidate kSymmetric64[] = {{0.97F},  {0.985F}, {0.995F}, {1.005F},
                                      {1.025F}, {1.04F},  {1.065F}, {1.105F}};
constexpr Candidate kSymmetric256[] = {{1.0F},   {1.005F}, {1.01F}, {1.015F},
                                       {1.025F}, {1.03F},  {1.04F}, {1.05F}};

// With two levels only the threshold between them matters.
constexpr Candidate kAffine2[] = {{1.0F, 0.0F},  {1.0F, -0.06F}, {1.0F, 0.06F}, {1.0F, -0.12F},
                                  {1.0F, 0.12F}, {1.0F, -0.2F},  {1.0F, 0.2F}};
constexpr Candidate kAffine3[] = {{0.5F, 0.0F},   {0.6F, 0.0F},   {0.7F, 0.0F}, {0.55F, -0.25F},
                                  {0.55F, 0.25F}, {0.55F, -0.5F}, {0.55F, 0.5F}};
constexpr Candidate kAffine4[] = {{0.6F, 0.0F},    {0.75F, 0.0F},  {0.6F, -0.25F}, {0.6F, 0.25F},
                                  {0.75F, -0.25F}, {0.75F, 0.25F}, {0.65F, -0.5F}, {0.65F, 0.5F}};
constexpr Candidate kAffine8[] = {{0.7F, 0.0F},    {0.79F, 0.0F},  {0.88F, 0.0F},   {0.94F, 0.0F},
                                  {0.85F, -0.25F}, {0.85F, 0.25F}, {0.93F, -0.25F}, {0.93F, 0.25F}};
constexpr Candidate kAffine16[] = {{0.96F, 0.0F},   {1.0F, 0.0F},   {0.94F, -0.25F}, {0.94F, 0.25F},
                                   {0.98F, -0.25F}, {0.98F, 0.25F}, {0.98F, -0.5F},  {0.98F, 0.5F}};
constexpr Candidate kAffine32[] = {{0.98F, 0.0F},   {0.995F, 0.0F},   {0.98F, -0.25F},
                                   {0.98F, 0.25F},  {0.995F, -0.25F}, {0.995F, 0.25F},
                                   {1.025F, -0.5F}, {1.025F, 0.5F}};
constexpr Candidate kAffine64[] = {{0.99F, 0.0F},  {1.0F, 0.0F},  {1.0F, -0.25F}, {1.0F, 0.25F},
                                   {1.01F, -0.5F}, {1.01F, 0.5F}, {1.03F, -1.0F}, {1.03F, 1.0F}};
constexpr Candidate kAffine256[] = {{1.0F, 0.0F},   {1.0F, -0.25F},  {1.0F, 0.25F}, {1.006F, -0.5F},
                                    {1.006F, 0.5F}, {1.012F, -1.0F}, {1.012F, 1.0F}};

constexpr Candidates symmetric_candidates(int levels) {
  switch (levels) {
    case 2:
      return span_of(kSymmetric2);
    case 3:
      return span_of(kSymmetric3);
    case 4:
      return span_of(kSymmetric4);
    case 8:
      return span_of(kSymmetric8);
    case 16:
      return span_of(kSymmetric16);
    case 32:
      return span_of(kSymmetric32);
    case 64:
      return span_of(kSymmetric64);
    default:
      return span_of(kSymmetric256);
  }
}

constexpr Candidates affine_candidates(int levels) {
  switch (levels) {
    case 2:
      return span_of(kAffine2);
    case 3:
      return span_of(kAffine3);
    case 4:
      return span_of(kAffine4);
    case 8:
      return span_of(kAffine8);
    case 16:
      return span_of(kAffine16);
    case 32:
      return span_of(kAffine32);
    case 64:
      return span_of(kAffine64);
    default:
      return span_of(kAffine256);
  }
}

}  // namespace
}  // namespace kvq
