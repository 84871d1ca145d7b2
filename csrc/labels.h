// The cross-entropy with a label knows no temperature: how exp(z_s) comes from e_s = exp(z_s /
// T_s).
#pragma once

#include <type_traits>

#include "kd.h"

namespace mkd::MKD_ISA {

enum class Label { kNone, kSame, kSquare, kOwn };  // no label, T = 1, T = 2, any other T

inline Label label_of(const KD& op) {
  return !op.labels              ? Label::kNone
         : op.temperature == 1.0 ? Label::kSame
         : op.temperature == 2.0 ? Label::kSquare
                                 : Label::kOwn;
}

// act(label), as a constant.
template <class Act>
inline void with_known(Label label, Act act) {
  switch (label) {
    case Label::kNone:
      return act(std::integral_constant<Label, Label::kNone>());
    case Label::kSame:
      return act(std::integral_constant<Label, Label::kSame>());
    case Label::kSquare:
      return act(std::integral_constant<Label, Label::kSquare>());
    case Label::kOwn:
      return act(std::integral_constant<Label, Label::kOwn>());
  }
}

}  // namespace mkd::MKD_ISA
