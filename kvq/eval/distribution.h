// Next-token distributions: the few row operations that comparing two models needs. Arithmetic in
// float vectors, sums in double.
#pragma once

namespace kvq {

// Index of the largest of logits [vocabulary], the first of equal ones, as greedy decoding picks
// it. -1 if none compares equal to the largest (NaN).
int arg_max(const float* logits, int vocabulary);

// log(sum(exp(logits))), logits [vocabulary]. NaN if any logit is NaN.
double log_sum_exp(const float* logits, int vocabulary);

// Writes probabilities [vocabulary] = softmax(logits); returns log_sum_exp(logits).
double softmax(const float* logits, int vocabulary, float* probabilities);

// sum_i probabilities[i] * (first[i] - second[i]), all [vocabulary].
double expected_difference(const float* probabilities, const float* first, const float* second,
                           int vocabulary);

}  // namespace kvq
