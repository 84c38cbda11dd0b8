variable "name" {
  description = "Of the repository."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9]+(?:[._/-][a-z0-9]+)*$", var.name))
    error_message = "A repository's name has small letters and digits, separated by one of . _ / - each."
  }
}

variable "force_delete" {
  description = "Whether `tofu destroy` deletes a repository that has images in it."
  type        = bool
  default     = true
}
