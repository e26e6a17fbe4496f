// _info_nce: checks and allocation.
#pragma once

#include "common/tensor.h"

namespace hrrl {

struct InfoNce {
  Tensor query, key, queue;    // [B, D], [B, D], [K, D] float or double, contiguous
  Tensor loss, grad_query;     // [B], [B, D] ([0] unless asked for) of that type
  int64_t batch, count, size;  // B, K, D
};

inline InfoNce prepare_info_nce(const Tensor& query, const Tensor& key, const Tensor& queue, double temperature,
                                bool with_grad) {
  constexpr const char* op = "_info_nce: ";
  const ScalarType type = query.scalar_type();
  HRRL_CHECK(query.dim() == 2, op, "query must have shape [B, D], got ", shape(query));
  HRRL_CHECK(type == ScalarType::Float || type == ScalarType::Double, op, "query must be float32 or float64");
  HRRL_CHECK(same_shape(key, query), op, "key must have the shape of query, ", shape(query), ", got ", shape(key));
  HRRL_CHECK(queue.dim() == 2 && queue.size(1) == query.size(1), op, "queue must have shape [K, ", query.size(1),
             "], as many columns as query, got ", shape(queue));
  for (const Tensor* t : {&key, &queue})
    HRRL_CHECK(t->scalar_type() == type && same_device(*t, query), op,
               "key and queue must have the dtype of query, and be on its device");
  HRRL_CHECK(temperature > 0, op, "temperature must be positive, got ", temperature);
  const int64_t batch = query.size(0), size = query.size(1);
  const Tensor grad = with_grad ? new_empty(query, {batch, size}, type) : new_empty(query, {0}, type);
  return {as_contiguous(query),
          as_contiguous(key),
          as_contiguous(queue),
          new_empty(query, {batch}, type),
          grad,
          batch,
          queue.size(0),
          size};
}

}  // namespace hrrl
