variable "name" {
  description = "Of the queue, and the beginning of the rules' names."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,46}$", var.name))
    error_message = "At most 46 letters, digits, - and _: a rule's name has 64."
  }
}
