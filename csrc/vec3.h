// A vector of three numbers per voxel and its arithmetic.
#pragma once

#include "common.h"

namespace deepatlas {

template <class T>
struct Vec3 {
  T x, y, z;
};

template <class T>
DA_HD Vec3<T> operator+(const Vec3<T>& a, const Vec3<T>& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z};
}
template <class T>
DA_HD Vec3<T> operator-(const Vec3<T>& a, const Vec3<T>& b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z};
}
template <class T>
DA_HD Vec3<T> operator*(const Vec3<T>& a, T s) {
  return {a.x * s, a.y * s, a.z * s};
}
// The product of each pair of components.
template <class T>
DA_HD Vec3<T> scaled(const Vec3<T>& a, const Vec3<T>& b) {
  return {a.x * b.x, a.y * b.y, a.z * b.z};
}
template <class T>
DA_HD T dot(const Vec3<T>& a, const Vec3<T>& b) {
  return a.x * b.x + a.y * b.y + a.z * b.z;
}
template <class T>
DA_HD Vec3<T> cross(const Vec3<T>& a, const Vec3<T>& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
// Linear interpolation from a (f = 0) to b (f = 1).
template <class T>
DA_HD Vec3<T> lerp(const Vec3<T>& a, const Vec3<T>& b, T f) {
  return a + (b - a) * f;
}
template <class T>
DA_HD T length(const Vec3<T>& v) {
  return std::sqrt(dot(v, v));
}
// Whether every component is exactly 0. A NaN is not, and a number whose square underflows is not
// either.
template <class T>
DA_HD bool is_zero(const Vec3<T>& v) {
  return (v.x == T(0)) & (v.y == T(0)) & (v.z == T(0));
}

}  // namespace deepatlas
